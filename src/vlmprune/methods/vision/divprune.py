"""DivPrune: the most diverse subset, greedily."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from vlmprune.author import Features, ImageView, ModelInfo, Need, SelectsTogether, ascending
from vlmprune.methods.diversity import most_diverse_of_each


@dataclass
class DivPrune(SelectsTogether):
    """Max-min diversity: each pick is the token farthest from all picked so far.

    Paper: DivPrune: Diversity-based Visual Token Pruning for Large Multimodal Models (CVPR 2025, arXiv 2503.02175).

    Formula: X [n, D] projected features, u_i = x_i / |x_i|, d = 1 - U U^T [n, n].
    First pick: the token whose nearest other token is farthest. Then, until `keep` are picked, argmax over j of
    min over picked s of d[s, j]. Ties go to the lower index. Time O(n^2 D + n keep), memory n^2 numbers.

    Defaults: 0.098 of the tokens on LLaVA-1.5 and LLaVA-NeXT, with positions renumbered; on Qwen2.5-VL (ports) the
    kept tokens keep their M-RoPE positions.

    Args:
        score_dtype: "float32", "float16" or "bfloat16": precision of the distances. The authors compute in the model's
            own, in which many distances tie, so many picks differ.
        compat: "official" lets a picked token be picked again, as the authors' code does.

    Differences from the authors' code:
        - A picked token cannot be picked again. Theirs relies on its distance to itself being the smallest, so among
          exact duplicates it picks the same token repeatedly and feeds it repeatedly. `compat="official"` repeats these
          picks and returns the distinct tokens, which are fewer than `keep`.
        - A zero vector is given the length of the smallest normal number; theirs yields NaN.
        - A running minimum, instead of gathering all picked rows at every step, finds the same picks.
    """

    name: ClassVar[str] = "divprune"
    stage: ClassVar[str] = "vision"
    summary: ClassVar[str] = "the most diverse tokens: greedy max-min cosine distance of projected features"

    score_dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    compat: Literal["paper", "official"] = "paper"

    def needs(self, info: ModelInfo) -> dict[str, Need]:
        return {"features": Features()}

    def select_together(self, views: Sequence[ImageView]) -> list[Tensor]:
        return [ascending(picks) if self.exact else torch.unique(picks) for picks in self.picks_of_each(views)]

    def picks(self, view: ImageView) -> Tensor:
        """Token indices in the order in which they are picked, [keep]."""
        return self.picks_of_each([view])[0]

    def picks_of_each(self, views: Sequence[ImageView]) -> list[Tensor]:
        """The same of views with as many tokens and one budget."""
        features = [view["features"].to(getattr(torch, self.score_dtype)) for view in views]
        return most_diverse_of_each(features, views[0].keep, again=not self.exact)
