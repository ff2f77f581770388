"""Prune-Aware Fusion for any method that chooses before the LLM."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from vlmprune.author import (
    Act, AtLeast, ImageView, Method, ModelInfo, Need, PixelMethod, Selection, SelectsTogether, Share, UserError,
)  # fmt: skip
from vlmprune.core.method import layer_within
from vlmprune.methods.hybrid.fusing import PruneAwareFusion
from vlmprune.methods.vision.divprune import DivPrune


@dataclass
class Fuse(PruneAwareFusion):
    """Cuts to another method's choice inside the LLM, after attention to the tokens it would have chosen next.

    Paper: Hi-Lo Prune (CVPR 2026, https://cvpr.thecvf.com/virtual/2026/poster/40023), whose authors put their
    Prune-Aware Fusion around DivPrune and CDPruner. A reconstruction, as `hilo` is; see there for the edit of
    attention.

    Formula: R = what the selector keeps with the budget, which is written with it: `fuse(divprune:0.1)@2`. Candidates
    F = what it would keep in addition, if it could keep share * n more. All tokens run through layers 0..L-1, F is
    fused in the last two of these, and before layer L all tokens of the image but R are dropped.
    Time O(H L |F| d) per fused layer plus twice the selector's, memory O(n) and chunks of rows.

    Defaults: L = 2 and the options of fusion as in `hilo`; share 0.3.

    Args:
        selector: a method that acts before the LLM and only drops tokens, by default DivPrune.
        layer: L, the decoder layer (0-based) before which it cuts.
        share: |F| / n.
        lambda_: strength of fusion; 0 for none.
        tau: share of a query's attention above which a candidate is raised.
        top_share: share of the candidates that may be raised for one query.
        threshold_over: "row" or "candidates": what tau is a share of.
        positive_only: leave negative logits alone, which the formula would lower.
        per: the selector's.

    Ours, where the sources say nothing:
        - F comes from a second selection with the larger budget: the tokens of it that the first selection does not
          keep. If the selector ranks all tokens (DivPrune, top-k scores), these are the next ones in its order.
        - Positions are kept, as in `hilo`, whatever the selector does with them before the LLM.
    """

    name: ClassVar[str] = "fuse"
    summary: ClassVar[str] = "another method's choice, cut inside the LLM after attention to what will be lost"
    wraps: ClassVar[str | None] = "selector"

    selector: Method = field(default_factory=DivPrune)
    layer: Annotated[int, AtLeast(1)] = 2
    share: Annotated[float, Share] = 0.3

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.selector, Method):
            raise UserError(f"{self.name}: selector={self.selector!r} must be a method, as in fuse(divprune:0.1)@2.")
        if isinstance(self.selector, PixelMethod):
            raise UserError(f"{self.name} takes a method that chooses tokens: {self.selector.name} resizes the image.")

    @property
    def exact(self) -> bool:
        return self.selector.exact

    @property
    def draws(self) -> bool:
        return self.selector.draws

    @property
    def budgeted(self) -> bool:
        return self.selector.budgeted

    def needs(self, info: ModelInfo) -> dict[str, Need]:
        return self.selector.needs(info)

    def pool(self, info: ModelInfo) -> str:
        return self.selector.per or self.selector.pool(info)

    def sees_every_slot(self, info: ModelInfo) -> bool:
        return self.selector.sees_every_slot(info)

    def decoder_layer(self, info: ModelInfo) -> int:
        if self.selector.decoder_layer(info) is not None:
            raise UserError(
                f"{self.name} takes a method that acts before the LLM: {self.selector.name} acts inside it."
            )
        return layer_within(self.name, self.layer, info)

    def budget(self, act: Act, n: int, total: int) -> int:
        return self.selector.budget(act, n, total)

    def candidate_count(self, act: Act, keep: int, n: int) -> int:
        return min(n - keep, round(self.share * n))

    def plans(self, views: Sequence[ImageView]) -> list[tuple[Tensor, Tensor]]:
        keep, n = views[0].keep, views[0].n
        more = keep + self.candidate_count(views[0].act, keep, n)
        kept = self._chosen(views)
        everything = torch.arange(n, device=views[0].slots.device)
        wider = [everything] * len(views) if more == n else self._chosen([replace(view, keep=more) for view in views])
        return [(own, wide[~torch.isin(wide, own)]) for own, wide in zip(kept, wider, strict=True)]

    def _chosen(self, views: Sequence[ImageView]) -> list[Tensor]:
        if isinstance(self.selector, SelectsTogether):
            chosen = self.selector.select_together(views)
        else:
            chosen = [self.selector.select(view) for view in views]
        return [self._indices(one, view) for one, view in zip(chosen, views, strict=True)]

    def _indices(self, chosen: Selection, view: ImageView) -> Tensor:
        if not isinstance(chosen, Tensor):
            raise UserError(f"{self.name} takes a method that only drops tokens: {self.selector.name} makes new ones.")
        return chosen.to(view.slots.device)
