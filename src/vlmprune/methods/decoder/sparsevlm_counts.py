"""SparseVLM's numbers: how many tokens each act keeps, and attention without its bias towards near tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from vlmprune.author import top_k
from vlmprune.methods.decoder.staged import interpolate

# For each budget, the tokens that each act keeps, both out of 576; for version 1.0, the scale and bias.
COUNTS: dict[str, dict[int, tuple[float, ...]]] = {
    "1.5": {64: (66, 30, 17), 96: (238, 48, 26), 128: (303, 110, 36), 192: (300, 200, 110)},
    "+": {64: (66, 34, 20), 96: (246, 54, 28), 128: (238, 108, 60), 192: (300, 200, 118)},
    "1.0": {64: (0.8, 0), 128: (9, 6), 192: (13.5, 0)},
}
HEADS = 14  # heads that count in version "+"


def by_rank(rows: Tensor, share: float) -> int:
    """k of version 1.0 for the budget `share`; all n if the raters' rows [R, n] have full rank."""
    scale, bias = interpolate(COUNTS["1.0"], share, of=576, whole=(40.5, 0.0))
    rank, n = int(torch.linalg.matrix_rank(rows.float())), rows.shape[1]
    return n if rank == n else max(1, min(int(rank * scale + bias), n - 1))


def without_gravity(attention: Tensor, gain: Tensor, eps: float) -> Tensor:
    """Relation [n] in version "+": the mean over raters and over the heads that attend most to the image.

    Args:
        attention: [H, R, n] of the raters.
        gain: [R, n] the divisor of the attention (`RotaryGain`); unless `eps` is 0, smaller gains are raised to `eps`.
    """
    weighed = attention / (gain.clamp(min=eps) if eps else gain)
    return weighed[top_k(weighed.sum((1, 2)), HEADS)].mean((0, 1)).nan_to_num()
