"""ToMe: similar tokens merged by bipartite matching, in a chain of steps after the projector or inside the encoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from vlmprune.author import Features, ImageView, Merged, MergesInside, ModelInfo, Need, ascending, top_k
from vlmprune.methods.checks import one_of, true_or_false


class Matching(NamedTuple):
    """One step: which tokens stay, and which join which.

    Attributes:
        stay: [t - r] the tokens that stay, in the authors' order: those of the first set, then the second set.
        leave: [r] tokens of the first set that are merged, the most similar pair first.
        joined: [r] the place in `stay` of the token that each of them joins.
        weighted: whether means count what earlier steps merged.
    """

    stay: Tensor
    leave: Tensor
    joined: Tensor
    weighted: bool = True

    def merge(self, rows: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
        """Rows [t - r, C] as means, and the sizes [t - r] of what they stand for, from rows [t, C] and sizes [t]."""
        # sums by a product with weights: a scattered sum would depend on the order of threads on a GPU
        joins = torch.arange(len(self.stay), device=rows.device)[:, None] == self.joined
        total = sizes[self.stay] + (joins * sizes[self.leave]).sum(1)
        counted = sizes if self.weighted else torch.ones_like(sizes)
        own, weights = counted[self.stay], joins * counted[self.leave]
        return (rows[self.stay] * own[:, None] + weights @ rows[self.leave]) / (own + weights.sum(1))[:, None], total


def match(metric: Tensor, r: int, cls: bool = False, weighted: bool = True) -> Matching:
    """Pair every other token with its most similar one among the rest, and merge the `r` most similar pairs.

    Args:
        metric: [t, C] what is compared, by cosine.
        r: tokens to merge away; at most half of them.
        cls: whether token 0 is a CLS token, which is never merged and keeps its place.
        weighted: whether means count what earlier steps merged.
    """
    unit = nn.functional.normalize(metric, dim=-1)
    first, second = (torch.arange(start, len(unit), 2, device=unit.device) for start in (0, 1))
    r = max(0, min(r, (len(unit) - cls) // 2))
    likeness, partner = (unit[first] @ unit[second].T).max(1)
    if cls:
        likeness[0] = float("-inf")
    order = top_k(likeness, len(first))
    rest = ascending(order[r:]) if cls else order[r:]
    return Matching(torch.cat([first[rest], second]), first[order[:r]], len(rest) + partner[order[:r]], weighted)


@dataclass
class ToMe(MergesInside):
    """Token merging: after the projector on any VLM, or inside every layer of a plain ViT as the authors have it.

    Paper: Token Merging: Your ViT But Faster (ICLR 2023, arXiv 2210.09461).

    Formula: X [n, D] projected features. A step: the tokens at even places are set A, those at odd places set B; each
    of A is paired with the one of B with the highest cosine; the r most similar pairs become the mean of both, weighted
    by how many tokens each stands for. Steps follow each other, r = min(tokens - keep, tokens // 2), on the tokens in
    the order they come out: A's that are left, by falling similarity, then B. 576 to 64 takes r = 288, 144, 72, 8.
    A merged token stands where its first member stood. With `inside` the same step between attention and MLP of each
    layer up to the projected one, on the keys k [t, d] of that attention, mean over heads; CLS stays; logits of later
    attention get the log of sizes added; r is spread evenly over the layers. Time O(n^2 D), memory n^2 / 4 numbers.

    Defaults: all frames or tiles of an image together. LLaVA counts positions anew, Qwen2.5-VL keeps the anchors'.

    Args:
        order: "image" puts the merged tokens in order of position, "matching" leaves the order of the last step.
        weighted: whether means count what earlier steps merged; False is LightCompress's plain mean.
        inside: merge inside the encoder: CLIP and SigLIP towers with a slot a patch (LLaVA-1.5, PaliGemma). Mergers,
            pixel shuffle, tiles and window attention need the whole grid.
        prop_attn: with `inside`, whether sizes count in attention; the authors' choice for models not trained for it.

    Differences from the authors' code:
        - Unless `inside`, after the projector: the metric is the features, there is no proportional attention and no
          schedule over layers, and the encoder gets no cheaper.
        - With `inside`, as many tokens as the budget says are left; theirs are told r.
        - Equal similarities go to the lower index (theirs: open). A zero vector is similar to nothing (theirs: NaN).
    """

    name: ClassVar[str] = "tome"
    stage: ClassVar[str] = "vision"
    summary: ClassVar[str] = "similar tokens merged pair by pair until the budget is met"
    merges: ClassVar[bool] = True

    order: str = "image"
    weighted: bool = True
    inside: bool = False
    prop_attn: bool = True

    def __post_init__(self) -> None:
        one_of(self, "order", "image", "matching")
        for option in ("weighted", "inside", "prop_attn"):
            true_or_false(self, option)

    @property
    def inside_encoder(self) -> bool:
        return self.inside

    @property
    def proportional(self) -> bool:
        return self.prop_attn

    @property
    def restores_order(self) -> bool:
        return self.order == "image"

    def merging(self, keys: Tensor, count: int, cls: bool) -> Matching:
        return match(keys.float(), count, cls, self.weighted)

    def needs(self, info: ModelInfo) -> dict[str, Need]:
        return {"features": Features()}

    def positions(self, info: ModelInfo) -> str:
        return "compact" if info.llava else "original"

    def sees_every_slot(self, info: ModelInfo) -> bool:
        """An image_newline is no part of the picture: the mean of several would stand at one row's end."""
        return False

    def select(self, view: ImageView) -> Merged:
        rows = view["features"].float()
        sizes, first = rows.new_ones(len(rows)), torch.arange(len(rows), device=rows.device)
        while len(rows) > view.keep:
            step = match(rows, len(rows) - view.keep, weighted=self.weighted)
            rows, sizes = step.merge(rows, sizes)
            first = first[step.stay].scatter_reduce(0, step.joined, first[step.leave], "amin")
        order = first.argsort() if self.restores_order else slice(None)
        return Merged(rows[order], first[order])
