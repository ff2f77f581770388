"""Counting the outliers among an image's values, for budgets that adapt to the image."""

from __future__ import annotations

import torch
from torch import Tensor


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
