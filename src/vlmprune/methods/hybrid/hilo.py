"""Hi-Lo Prune: a coarse choice by pixels, a fine one by features, and fusion of what will be lost before the cut."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from vlmprune.author import (
    Act, At, Features, ImageView, Keep, ModelInfo, Need, Pixels, Positive, Share, UserError, ascending, resolve_keep,
)  # fmt: skip
from vlmprune.methods.decoder.staged import Staged, share_of
from vlmprune.methods.diversity import most_diverse_of_each
from vlmprune.methods.hybrid.fusing import PruneAwareFusion, earlier_order, remember_order

SHARES = {"qwen2_vl": 0.6}  # and 0.9 on LLaVA, 0.3 elsewhere


@dataclass
class HiLo(PruneAwareFusion, Staged):
    """Chooses diverse pixels, then diverse features among these; fuses what only the pixels chose before the cut.

    Paper: Hi-Lo Prune: Look at What You'll Lose before Pruning with Hierarchical Token Selection (CVPR 2026,
    https://cvpr.thecvf.com/virtual/2026/poster/40023). A reconstruction from the abstract, the supplement and public
    reading notes: no code is public.

    Formula: P [n, pixels] the pixels a token covers, V [n, D] projected features, K = keep * n. Coarse: C, the first
    max(K, share * n) of the greedy max-min order by cosine distance of P. Fine: R, the first K of the same order of V
    within C. Candidates F = C without R. All tokens run through layers 0..L-1; in layers L-2 and L-1 of the prefill the
    logits of every query outside F at keys in F become A + lambda A where softmax(A) > tau and A is among the
    ceil(top_share * |F|) largest over F; before layer L only R and the text are kept. Time O(n^2 D + n K).

    Defaults: L = 2, lambda 0.3, top_share 0.1; share and tau by family, as in the supplement: share 0.6 on Qwen2-VL,
    0.3 on Qwen2.5-VL and Qwen3-VL, 0.9 on LLaVA; tau 0.1 on Qwen2-VL and Qwen2.5-VL, 0.05 on Qwen3-VL and LLaVA.
    `hilo@4,8,16:0.2` is its schedule of several cuts, which leave [0.8, 0.4, 0.2] of the tokens that reach the first.

    Args:
        layers: decoder layers (0-based) before which it cuts; each cut leaves `ratio` times what the next one leaves.
        share: |C| / n; by default the paper's for this family, or 0.3 on families that the paper does not have.
        alpha: |C| / K, instead of `share`.
        coarse_pixels: "raw": in [0, 1]; "normalized": as the encoder gets them.
        ratio: tokens left by one cut, divided by those left by the next.

    Ours, where the sources say nothing or can be read in two ways:
        - The supplement's 60, 30 and 90 % "of candidate tokens" are |C| / n, since alpha's tested range of 2 to 9 is
          20 to 90 % of n when 10 % are kept.
        - P is the encoder's input with the processor's normalisation undone, all patches of a slot side by side, both
          frames of a temporal patch; normalised grey is near zero, and its cosine says nothing.
        - The greedy order is DivPrune's: its first pick, ties to the lower index, zero vectors given a length.
        - A is what softmax sees: scaled, rotated, masked. Negative logits are edited like the others.
        - tau is compared with softmax over the whole row; the largest logits are counted over the image's candidates,
          separately in each head; only queries of the prompt are edited, all those outside F.
        - The edit is computed in float32, and again from all logits if a row's denominator nearly vanishes.
        - Nothing is fused in decoding. Positions are kept.
        - Several cuts are nested: each later cut takes its tokens by the fine order of the first; F is what a cut
          removes of C; fusion runs before the first two ("the first two pruned layers"), in each layer for one cut.
        - Frames of a video, and tiles, select by themselves, each with its share of the budget.
        - Layers L-2 and L-1 are fused if they have an attention map (Qwen3.5: not all do); at least one must.
    """

    name: ClassVar[str] = "hilo"
    summary: ClassVar[str] = "diverse pixels, then diverse features, cut after attention to what will be lost"

    share: Annotated[float, Share] | None = None
    alpha: Annotated[float, Positive] | None = None
    coarse_pixels: Literal["raw", "normalized"] = "raw"
    ratio: Annotated[float, Positive] = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.share is not None and self.alpha is not None:
            raise UserError(f"{self.name}: share and alpha both set the size of the coarse choice: give one of them.")
        if self.ratio < 1:
            raise UserError(f"{self.name}: ratio={self.ratio!r} must be at least 1, as no cut brings tokens back.")

    def needs(self, info: ModelInfo) -> dict[str, Need]:
        return {"pixels": Pixels(normalized=self.coarse_pixels == "normalized"), "features": Features()}

    def pool(self, info: ModelInfo) -> str:
        return "frame"

    def usual_layers(self, info: ModelInfo) -> tuple[tuple[int, ...], int]:
        return (2,), info.decoder_layers  # whatever the depth

    def shares(self, share: float, layers: Sequence[int], info: ModelInfo) -> Sequence[float]:
        return [min(1.0, share * self.ratio ** (len(layers) - 1 - number)) for number in range(len(layers))]

    def budget(self, act: Act, n: int, total: int) -> int:
        left = self.shares(share_of(act.keep, total), act.decoder_layers, act.info)[act.number]
        return min(n, resolve_keep(left, total))  # as DivPrune rounds

    def acts(self, info: ModelInfo, keep: Keep) -> Sequence[int | At | None]:
        return [At(layer, fuses=number < 2) for number, layer in enumerate(self.schedule(info))]

    def plans(self, views: Sequence[ImageView]) -> list[tuple[Tensor, Tensor]]:
        """R in the order of the fine choice, and F."""
        orders = [earlier_order(view) if view.act.number else None for view in views]
        first = iter(self._first_plans([view for view, order in zip(views, orders, strict=True) if order is None]))
        return [
            next(first) if order is None else (order[: view.keep], order[view.keep :])
            for view, order in zip(views, orders, strict=True)
        ]

    def _first_plans(self, views: Sequence[ImageView]) -> list[tuple[Tensor, Tensor]]:
        """Those of views of which no earlier act noted an order."""
        if not views:
            return []
        coarse = self._coarse_of_each(views)
        features = [view["features"][tokens] for view, tokens in zip(views, coarse, strict=True)]
        kept = [
            tokens[picks] for tokens, picks in zip(coarse, most_diverse_of_each(features, views[0].keep), strict=True)
        ]
        for view, order in zip(views, kept, strict=True):
            remember_order(view, order)
        return [
            (order, tokens[torch.isin(tokens, order, invert=True)]) for tokens, order in zip(coarse, kept, strict=True)
        ]

    def coarse_count(self, info: ModelInfo, keep: int, n: int) -> int:
        """|C|."""
        part = self.share if self.share is not None else 0.9 if info.llava else SHARES.get(info.family, 0.3)
        wanted = part * n if self.alpha is None else self.alpha * keep
        return min(n, max(keep, round(wanted)))

    def candidate_count(self, act: Act, keep: int, n: int) -> int:
        return n - keep if act.number else self.coarse_count(act.info, keep, n) - keep

    def coarse(self, view: ImageView) -> Tensor:
        """C in increasing order; at least as many tokens as are kept."""
        return self._coarse_of_each([view])[0]

    def _coarse_of_each(self, views: Sequence[ImageView]) -> list[Tensor]:
        n, count = views[0].n, self.coarse_count(views[0].info, views[0].keep, views[0].n)
        if count == n:
            return [torch.arange(n).to(view.slots) for view in views]
        return [ascending(picks) for picks in most_diverse_of_each([view["pixels"] for view in views], count)]
