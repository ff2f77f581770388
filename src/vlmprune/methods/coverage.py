"""Greedy coverage, which several methods share: each pick is the token that adds most to what is covered."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vlmprune.author import top_k

AT_ONCE = 32  # gains that are worked out together

Weigh = Callable[[Tensor, Tensor], Tensor]


def most_covering(covers: Tensor, count: int, weigh: Weigh = lambda gain, tokens: gain) -> Tensor:
    """The greedy order of maximum coverage.

    A thing i is covered as well as the best of the picks covers it, at first by 0. The gain of token j is the sum over
    i of max(0, covers[j, i] - best_i). Each pick is the token with the highest weighted gain; ties go to the lower
    index. Gains only fall from pick to pick, so an old one is a bound: only tokens with the highest bounds are worked
    out again, and the picks are those of the plain loop. Time O(n m) and at most O(n m count), memory O(n m).

    Args:
        covers: [n, m] how well each token covers each of m things.
        count: how many tokens to pick, at most n.
        weigh: turns the gains [k] of tokens [k] into finite scores [k] that do not fall where the gain grows.

    Returns:
        Indices in the order in which they are picked, [count].
    """
    best = covers.new_zeros(covers.shape[1])

    def scores(tokens: Tensor) -> Tensor:
        return weigh((covers[tokens] - best).clamp_(min=0).sum(1), tokens)

    every = torch.arange(len(covers), device=covers.device)
    bounds, picks = torch.cat([scores(tokens) for tokens in every.split(AT_ONCE)]), []
    left = torch.ones_like(every, dtype=torch.bool)
    for _ in range(count):
        stale = left.clone()
        while stale[pick := bounds.argmax(keepdim=True)]:
            tokens = top_k(torch.where(stale, bounds, float("-inf")), AT_ONCE)
            bounds[tokens] = torch.where(stale[tokens], scores(tokens), bounds[tokens])
            stale[tokens] = False
        picks.append(pick)
        left[pick], bounds[pick] = False, float("-inf")
        best = torch.maximum(best, covers.index_select(0, pick)[0])
    return torch.cat(picks)
