"""Bipartite soft matching, by which ToMe merges tokens pair by pair."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from vlmprune.author import ascending, top_k


class Matching(NamedTuple):
    """One step of merging: which tokens stay, and which token each of the others joins.

    Attributes:
        stay: [t - r] the tokens that stay, in the authors' order: those of the first set, then the second set.
        leave: [r] tokens of the first set that are merged, the most similar pair first.
        joined: [r] index into `stay` of the token that each of these joins.
        weighted: whether a mean weighs each token by how many tokens it stands for.
    """

    stay: Tensor
    leave: Tensor
    joined: Tensor
    weighted: bool = True

    def merge(self, rows: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
        """From rows [t, C] and sizes [t], the means [t - r, C] and their sizes [t - r] (tokens each stands for)."""
        # sums by a product with weights: a scattered sum would depend on the order of threads on a GPU
        joins = torch.arange(len(self.stay), device=rows.device)[:, None] == self.joined
        total = sizes[self.stay] + (joins * sizes[self.leave]).sum(1)
        counted = sizes if self.weighted else torch.ones_like(sizes)
        own, weights = counted[self.stay], joins * counted[self.leave]
        return (rows[self.stay] * own[:, None] + weights @ rows[self.leave]) / (own + weights.sum(1))[:, None], total


def match(metric: Tensor, r: int, cls: bool = False, weighted: bool = True) -> Matching:
    """Pair every second token with the most similar one of the others, and merge the `r` most similar pairs.

    Args:
        metric: [t, C] the vectors that are compared, by cosine.
        r: tokens to merge away; at most half of them.
        cls: whether token 0 is a CLS token, which is never merged and keeps its place.
        weighted: whether a mean weighs each token by how many tokens it stands for.
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
