"""FitPrune: how many tokens each decoder layer deletes is fitted once; attention decides which ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal

import torch
from torch import Tensor

from vlmprune.author import (
    Act, At, ImageView, Keep, ModelInfo, Need, Scorer, TextQueryAttention, VisualQueryAttention, ascending, top_k,
)  # fmt: skip
from vlmprune.methods.decoder.fitprune_curves import entering, published, read_curve
from vlmprune.methods.decoder.staged import share_of


@dataclass
class FitPrune(Scorer):
    """Deletes a fitted number of tokens at every decoder layer: those that neither text nor image attends to.

    Paper: Fit and Prune: Fast and Training-free Visual Token Pruning for Multi-modal Large Language Models (AAAI 2025,
    arXiv 2409.10197).

    Formula: B = max over heads of the softmax map of layer l. self [n] = mean of B over the image's queries, cross [n]
    = sum of B over the T text queries after the image. Layer l deletes the recipe[l] tokens with the smallest
    self * cross, after its attention. Here they are cut before layer l+1, so only the MLP of layer l still sees them.
    The recipe comes from `vlmprune.fit.calibration.fitprune`. Time O(T n) per act, memory O(T n).

    Defaults: `keep` is the average share of the image's tokens that enters a layer, by the authors' recipes for
    LLaVA-1.5-7B (saving 10 to 90 % of operations keeps 0.94 to 0.126). Ours, where they say nothing: numbers of tokens
    are interpolated between two recipes and beyond the last; at another depth each layer takes the mean of the curve
    over its part of the depth; of n tokens the same share is deleted as of the authors' 576. Nothing can be cut before
    layer 0, so it runs on all tokens. Positions are kept.

    Args:
        recipe: the share of tokens that enters each decoder layer, starting at 1.0 and never rising; or the path of a
            JSON file with such a list under "shares". For a `keep` other than its mean it is interpolated towards all
            tokens or none.
        compat: "uniprune" is UniPruneBench's variant, for reproduction only: before layer 2, by layer 1, it keeps the
            int(keep * n) tokens with the LOWEST scores, which FitPrune deletes first.

    Differences from the authors' code:
        - The last token always stays, and no count is left on the model afterwards.
        - A layer without an attention map deletes nothing; the next layer that has one deletes that many more.
    """

    name: ClassVar[str] = "fitprune"
    stage: ClassVar[str] = "decoder"
    summary: ClassVar[str] = "tokens that text or image attends to; each layer deletes a fitted number of others"
    budget_means: ClassVar[str] = "an average over layers"

    recipe: str | tuple[float, ...] | None = None
    compat: Literal["paper", "uniprune"] = "paper"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.recipe is not None:
            read_curve(self.recipe)  # raises at once if the recipe cannot be read

    def needs(self, info: ModelInfo) -> dict[str, Need]:
        return {"visual": VisualQueryAttention(heads="max"), "text": TextQueryAttention(heads="max")}

    def decoder_layer(self, info: ModelInfo) -> int:
        return 2 if self.compat == "uniprune" else 1

    def acts(self, info: ModelInfo, keep: Keep) -> Sequence[int | At | None]:
        if self.compat == "uniprune":
            return super().acts(info, keep)
        depth = info.decoder_layers
        return [layer + 1 for layer in info.attention_layers or range(depth) if layer + 1 < depth]

    @cached_property
    def curves(self) -> list[tuple[float, ...]]:
        return published() if self.recipe is None else [read_curve(self.recipe)]

    def budget(self, act: Act, n: int, total: int) -> int:
        if self.compat == "uniprune":
            return min(n, max(1, int(act.keep * n) if isinstance(act.keep, float) else act.keep))
        assert act.layer is not None
        left = entering(self.curves, share_of(act.keep, total), act.info.decoder_layers)[act.layer]
        return min(n, max(1, round(left * total)))

    def score(self, view: ImageView) -> Tensor:
        text = view["text"]
        return view["visual"] * text.sum(0) if len(text) else view["visual"]

    def select(self, view: ImageView) -> Tensor:
        score = self.score(view)
        return ascending(top_k(-score if self.compat == "uniprune" else score, view.keep))


def expendable(cross: Tensor, own: Tensor, whole: tuple[float, float], alpha: float) -> tuple[int, int, Tensor]:
    """The tokens of one image that one layer may delete: a step of the fit.

    For each kind of attention (from the text, from the image), the tokens that receive least may go as long as the
    others still receive (1 - alpha) of what all tokens receive in the unpruned model. Tokens that may go by both kinds
    are deleted.

    Args:
        cross: [n] attention that the present tokens receive from the text, own: [n] from the image.
        whole: sums of both over all tokens, in the unpruned model.

    Returns:
        How many tokens may go by each kind, and the [m] tokens that may go by both, in order.
    """
    free = torch.ones(len(cross), dtype=torch.bool, device=cross.device)
    counts = []
    for received, total in zip((cross, own), whole, strict=True):
        order = torch.sort(received, stable=True).indices
        left = received.double().sum() - received[order].double().cumsum(0)
        counts.append(int((left >= (1 - alpha) * total).sum()))
        free[order[counts[-1] :]] = False
    return counts[0], counts[1], free.nonzero().squeeze(1)
