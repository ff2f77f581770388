"""ToMe: merges similar tokens by bipartite matching, in several steps after the projector or inside the encoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from vlmprune.author import Features, ImageView, Merged, MergesInside, ModelInfo, Need, goes_to
from vlmprune.methods.matching import Matching, match


@dataclass
class ToMe(MergesInside):
    """Token merging: after the projector on any VLM, or inside every layer of a plain ViT as in the paper.

    Paper: Token Merging: Your ViT But Faster (ICLR 2023, arXiv 2210.09461).

    Formula: X [n, D] projected features. One step: the tokens at even places are set A, those at odd places set B; each
    of A is paired with the one of B with the highest cosine; the r most similar pairs become the mean of both, weighted
    by how many tokens each stands for. Steps are repeated with r = min(tokens - keep, tokens // 2), on the tokens in
    the order they come out: those left of A, by falling similarity, then B. 576 to 64 takes r = 288, 144, 72, 8.
    A merged token stands where its first member stood. With `inside`, the same step takes place between attention and
    MLP of each layer up to the projected one, on the keys k [t, d] of that attention, mean over heads; CLS stays; later
    attention adds the log of sizes to logits; r is spread evenly over layers. Time O(n^2 D), memory n^2 / 4 numbers.

    Defaults: all frames or tiles of an image together. LLaVA renumbers positions, Qwen2.5-VL keeps the anchors'.

    Args:
        order: "image" puts the merged tokens in order of position, "matching" leaves the order of the last step.
        weighted: whether means weigh tokens by what they stand for; False is LightCompress's plain mean.
        inside: merge inside the encoder: CLIP and SigLIP towers with a slot per patch (LLaVA-1.5, PaliGemma). Mergers,
            pixel shuffle, tiles and window attention need the whole grid.
        prop_attn: with `inside`, whether sizes count in attention; the authors' choice for models not trained for it.

    Differences from the authors' code:
        - Unless `inside`, it merges after the projector: the metric is the features, there is no proportional
          attention and no schedule over layers, and the encoder is not faster.
        - With `inside`, the budget says how many tokens are left; theirs is given r.
        - Equal similarities go to the lower index (theirs: open). A zero vector is similar to nothing (theirs: NaN).
    """

    name: ClassVar[str] = "tome"
    stage: ClassVar[str] = "vision"
    summary: ClassVar[str] = "similar tokens merged pair by pair until the budget is met"
    merges: ClassVar[bool] = True

    order: Literal["image", "matching"] = "image"
    weighted: bool = True
    inside: bool = False
    prop_attn: bool = True

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

    def sees_every_slot(self, info: ModelInfo) -> bool:
        """Never: an image_newline is not part of the picture, and the mean of several would stand at one row's end."""
        return False

    def select(self, view: ImageView) -> Merged:
        rows = view["features"].float()
        sizes, first = rows.new_ones(len(rows)), torch.arange(len(rows), device=rows.device)
        members = first
        while len(rows) > view.keep:
            step = match(rows, len(rows) - view.keep, weighted=self.weighted)
            members = goes_to(step, len(rows))[members]
            rows, sizes = step.merge(rows, sizes)
            first = first[step.stay].scatter_reduce(0, step.joined, first[step.leave], "amin")
        made = Merged(rows, first, members=members)
        return made.ordered(first.argsort()) if self.restores_order else made
