"""Selections that several methods share. Ties always go to the lower index."""

from __future__ import annotations

import torch
from torch import Tensor


def top_k(scores: Tensor, k: int) -> Tensor:
    """Indices of the `k` highest entries of `scores` [n], highest first; equal ones in index order, NaN last.

    `torch.topk` leaves the order of equal scores open, so results would differ between devices; a stable sort does not.
    """
    clean = torch.nan_to_num(scores.float(), nan=float("-inf"), posinf=torch.finfo(torch.float32).max)
    return torch.sort(clean, descending=True, stable=True).indices[:k]


def ascending(indices: Tensor) -> Tensor:
    """Indices in increasing order, as the language model needs them."""
    return torch.sort(indices).values
