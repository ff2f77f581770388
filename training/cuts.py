"""Cuts of visual tokens in training: what a small decoder must have met to bear that tokens are missing.

Large language models were pretrained on texts of every kind. A decoder of this size, trained on whole pictures alone,
counts by the share of background and knows the length of a row by heart, so any cut breaks it. These cuts take such
shortcuts away. None looks at what a picture shows (masks) or at a pruning method's choice:

- uniform: tokens at random;
- window: most of a random rectangle, a smaller picture;
- blobs: where a smooth random field is high;
- direction: where the features point along a random direction, with noise. It keeps tokens that look alike
  (only background, only red things, only edges, ...).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

KINDS = {"uniform": 0.35, "window": 0.15, "blobs": 0.15, "direction": 0.35}
COUNTS = (20, 28, 40, 56, 80, 112)  # tokens left; a step draws one of them
ORIGINAL_SHARE = 0.5  # of the rows keep their tokens' position ids; the others count on


@dataclass(frozen=True)
class Kept:
    """index: int64 [B, K], the kept slots, ascending; original: bool [B], whether they keep their position ids."""

    index: Tensor
    original: Tensor

    def of_rows(self, rows: int, slots: int) -> Kept:
        """The pictures of each row as one picture of that many slots more."""
        pictures = len(self.index) // rows
        start = slots * torch.arange(pictures, device=self.index.device)[None, :, None]
        index = (self.index.view(rows, pictures, -1) + start).flatten(1)
        return Kept(index, self.original[::pictures])


def draw_cut(rng: np.random.Generator, features: Tensor, grid: tuple[int, int], count: int) -> Kept:
    """A cut of each row to `count` tokens.

    Args:
        features: [B, slots, hidden], row-major over `grid` (rows, columns).
    """
    rows = len(features)
    kinds = rng.choice(list(KINDS), rows, p=list(KINDS.values()))
    looks = _alike(rng, features.detach().float())
    scores = torch.stack(
        [
            looks[k] if kind == "direction" else torch.from_numpy(_SCORES[kind](rng, grid, count)).float()
            for k, kind in enumerate(kinds)
        ]
    )
    index = scores.topk(count, dim=1).indices.sort(dim=1).values
    return Kept(index.to(features.device), torch.from_numpy(rng.random(rows) < ORIGINAL_SHARE).to(features.device))


def _uniform(rng: np.random.Generator, grid: tuple[int, int], count: int) -> np.ndarray:
    return rng.random(grid[0] * grid[1])


def _window(rng: np.random.Generator, grid: tuple[int, int], count: int) -> np.ndarray:
    """A rectangle of one to two times `count` slots, its slots before all others."""
    rows, columns = grid
    area = count * rng.uniform(1, 2)
    high = int(np.clip(np.sqrt(area) * rng.uniform(0.6, 1.6), min(rows, np.ceil(count / columns)), rows))
    wide = int(np.clip(np.ceil(area / high), 1, columns))
    top, left = int(rng.integers(rows - high + 1)), int(rng.integers(columns - wide + 1))
    scores = rng.random(grid)
    scores[top : top + high, left : left + wide] += 1
    return scores.ravel()


def _blobs(rng: np.random.Generator, grid: tuple[int, int], count: int) -> np.ndarray:
    coarse = torch.from_numpy(rng.normal(size=(1, 1, int(rng.integers(2, 6)), int(rng.integers(2, 6))))).float()
    field = nn.functional.interpolate(coarse, grid, mode="bilinear", align_corners=True)[0, 0].numpy()
    return (field + 0.1 * rng.normal(size=grid)).ravel()


def _alike(rng: np.random.Generator, features: Tensor) -> Tensor:
    """[B, slots] features along one random direction each, with noise of a random strength."""
    flat = features.flatten(0, 1)
    standard = (features - flat.mean(0)) / flat.std(0).clamp(min=1e-6)
    direction = torch.from_numpy(rng.normal(size=(len(features), features.shape[2], 1))).to(features)
    along = (standard @ direction).squeeze(2)
    noise = torch.from_numpy(rng.normal(size=along.shape)).to(along)
    strength = torch.from_numpy(np.exp(rng.uniform(np.log(0.05), np.log(1.5), (len(along), 1)))).to(along)
    return (along / along.std(1, keepdim=True).clamp(min=1e-6) + strength * noise).cpu()


_SCORES = {"uniform": _uniform, "window": _window, "blobs": _blobs}
