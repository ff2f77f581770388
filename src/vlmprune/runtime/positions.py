"""Position ids after tokens were dropped: the two policies."""

from __future__ import annotations

import torch
from torch import Tensor


def gather_positions(positions: Tensor, index: Tensor) -> Tensor:
    """Positions [B, L] or [axes, B, L] at columns `index` [B, P]."""
    if positions.ndim == 2:
        return positions.gather(1, index)
    return positions.gather(2, index.expand(positions.shape[0], -1, -1))


def compact(positions: Tensor, valid: Tensor, image: Tensor, text_row: bool, dropped: Tensor) -> tuple[Tensor, Tensor]:
    """Re-number kept tokens as if the dropped ones had never been there.

    1-D ids simply count on. M-RoPE ids are re-numbered by the model's own rule: a text token takes the next id on
    every axis; inside an image each axis is ranked densely from the next id; what follows starts at its largest id + 1.

    Args:
        positions: [B, P], or [axes, B, P] for M-RoPE, as they were.
        valid: [B, P] real tokens.
        image: [B, P] number of the token's image in its sample, -1 for text.
        text_row: whether axis 0 of M-RoPE ids counts tokens (transformers' fourth row) and so is 1-D.
        dropped: [B] rows that lost tokens; the others keep their ids, as they would by themselves.

    Returns:
        The new ids, and `delta` ([B] or [axes, B]): what later ids must be lowered by.
    """
    flat = positions.unsqueeze(0) if positions.ndim == 2 else positions
    new = torch.zeros_like(flat)
    delta = torch.zeros(flat.shape[:2], dtype=flat.dtype, device=flat.device)
    for row in range(flat.shape[1]):
        columns = valid[row].nonzero().squeeze(1)
        old = flat[:, row, columns]
        if not dropped[row]:
            fresh = old
        elif positions.ndim == 2:
            fresh = _count(old)
        elif text_row:
            fresh = torch.cat([_count(old[:1]), _rank_by_segment(old[1:], image[row, columns])])
        else:
            fresh = _rank_by_segment(old, image[row, columns])
        new[:, row, columns] = fresh
        delta[:, row] = old[:, -1] - fresh[:, -1]
    if positions.ndim == 2:
        return new[0], delta[0]
    return new, delta


def _count(old: Tensor) -> Tensor:
    return old[:, :1] + torch.arange(old.shape[1], device=old.device)


def _rank_by_segment(old: Tensor, image: Tensor) -> Tensor:
    fresh = torch.empty_like(old)
    cursor = old[:, 0].min()
    borders = (torch.diff(image) != 0).nonzero().squeeze(1) + 1
    for columns in torch.tensor_split(torch.arange(old.shape[1], device=old.device), borders.cpu()):
        if image[columns[0]] < 0:
            fresh[:, columns] = cursor + torch.arange(len(columns), device=old.device)
        else:
            for axis in range(old.shape[0]):
                fresh[axis, columns] = cursor + torch.unique(old[axis, columns], return_inverse=True)[1]
        cursor = fresh[:, columns].max() + 1
    return fresh
