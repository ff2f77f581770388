"""Fine structure of a picture's tokens: their spectrum in the grid, without its low frequencies."""

from __future__ import annotations

import torch
from torch import Tensor, fft

from vlmprune.author import Grid, ImageView

CHANNELS = 512  # transformed at a time, as complex numbers need memory


def raster(view: ImageView) -> tuple[Grid, Tensor, Tensor] | None:
    """The whole frames of an image: their grid, [m] where in it each shown token stands, and [m] these tokens.

    None without a grid, or where tokens of a frame are missing.
    """
    shown = (view.cells >= 0).nonzero().squeeze(1)
    if view.grid is None or not len(shown):
        return None
    size = view.grid.rows * view.grid.cols
    cells = view.cells[shown]
    frames, frame = torch.unique(cells // size, return_inverse=True)
    at = frame * size + cells % size
    whole = len(at) == len(frames) * size == len(at.unique())
    return (view.grid._replace(frames=len(frames)), at, shown) if whole else None


def high_pass(features: Tensor, grid: Grid, at: Tensor, cutoff: float, kind: str) -> Tensor:
    """[m] the mean over channels of what is left of each token's features without low frequencies.

    The factor of a frequency at distance r from zero is 1 - exp(-r^2 / 2 s^2).

    Args:
        features: [m, D].
        at: [m] where in the grid they stand.
        cutoff: s, as a share of half the shortest side of the grid (rounded down).
        kind: "2d" for each frame, "3d" for all frames together.
    """
    sides = (grid.frames, grid.rows, grid.cols)
    axes = (0, 1, 2) if kind == "3d" else (1, 2)
    placed = torch.empty_like(features, dtype=torch.float32)
    placed[at] = features.float()
    width = max(cutoff * min(sides[axis] // 2 for axis in axes), 1e-6)
    square = torch.zeros(())
    for axis in axes:
        offsets = fft.fftfreq(sides[axis], 1 / sides[axis], device=features.device)
        square = square.to(offsets) + offsets.square().reshape([-1 if axis == side else 1 for side in range(3)])
    factor = 1 - (-square / (2 * width**2)).exp()
    left = torch.zeros(sides, device=features.device)
    for part in placed.reshape(*sides, -1).split(CHANNELS, dim=-1):
        left += fft.ifftn(fft.fftn(part, dim=axes) * factor[..., None], dim=axes).abs().sum(-1)
    return (left / features.shape[1]).flatten()[at]
