"""Counting the outliers among an image's values, for budgets that adapt to the image."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vlmprune.author import Act, Method


@dataclass
class CountsItself(Method):
    """A method that may leave it to the image how many tokens stay.

    Args:
        adaptive: whether it does; it takes no budget then.
    """

    adaptive: bool = False

    @property
    def exact(self) -> bool:
        return not self.adaptive and super().exact

    @property
    def budgeted(self) -> bool:
        return not self.adaptive

    def budget(self, act: Act, n: int, total: int) -> int:
        return max(1, n - 1) if self.adaptive else super().budget(act, n, total)


def outliers_above(values: Tensor) -> int:
    """Values [n] above Q3 + 1.5 (Q3 - Q1), Q1 and Q3 being their quartiles (Tukey's upper fence)."""
    low, high = torch.quantile(values, values.new_tensor([0.25, 0.75])).tolist()
    return int((values > high + 1.5 * (high - low)).sum())


def local_outliers(values: Tensor, neighbours: int, limit: float = 1.5) -> int:
    """How many of the values [n] have a local outlier factor above `limit` (Breunig et al., 2000).

    scikit-learn's "auto" limit is 1.5. The factor compares the density around a value with the densities around its
    nearest `neighbours` values. Sorted on a line, these are found within `neighbours` values on either side, so nothing
    of size n x n is needed.
    """
    n, k = len(values), min(neighbours, len(values) - 1)
    if k < 1:
        return 0
    line = values.double().nan_to_num().sort().values
    steps = torch.arange(-k, k + 1, device=line.device)
    beside = torch.arange(n, device=line.device)[:, None] + steps[steps != 0]
    distance = (line[beside.clamp(0, n - 1)] - line[:, None]).abs()
    distance, order = distance.masked_fill((beside < 0) | (beside >= n), torch.inf).sort(dim=1, stable=True)
    near = beside.gather(1, order[:, :k])
    reach = torch.maximum(distance[:, :k], distance[near, k - 1])
    density = 1 / (reach.mean(1) + 1e-10)
    return int((density[near].mean(1) / density > limit).sum())
