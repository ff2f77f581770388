"""PruneSID's quotas: how groups of tokens share a budget by how many distinct tokens they have."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch


def quotas(sizes: Sequence[int], distinct: Sequence[int], keep: int, total: int) -> list[int]:
    """Budgets of groups, which add up to `total` (or to one for each group, if that is more).

    Each group gets one token, and of the rest a share by its distinct tokens, rounded so that the shares of the first
    groups add up as they should. No group gets more than its bound, which is the number of its distinct tokens and
    5 ceil(keep / 64), raised for all groups alike until `keep` tokens fit. What the bounds leave over goes to the
    groups with most distinct tokens, in turn up to the bound of each.

    Args:
        sizes: tokens in each group, together at least `keep`.
        distinct: how many of them are distinct.
        keep: the budget that sets the bounds, at least `total`.
        total: tokens to share out.
    """
    least = [min(1, size) for size in sizes]
    most = [min(5 * math.ceil(keep / 64), *pair) for pair in zip(sizes, distinct, strict=True)]
    while sum(most) < keep:
        most = [min(bound + 1, size) for bound, size in zip(most, sizes, strict=True)]
    others = max(0, total - sum(least))
    counts = torch.tensor(distinct, dtype=torch.float32)  # the authors' precision, as it decides how halves round
    upto = ((counts / counts.sum().clamp(min=1)).cumsum(0) * others).round().long()
    shares = upto.diff(prepend=upto.new_zeros(1)).tolist()
    given = [min(low + share, bound) for low, share, bound in zip(least, shares, most, strict=True)]
    for group in sorted(range(len(sizes)), key=lambda one: -distinct[one]):
        given[group] += min(max(0, others + sum(least) - sum(given)), most[group] - given[group])
    return given
