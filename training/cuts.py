"""Cuts of visual tokens in training: what a small decoder must have met to bear that tokens are missing.

Large language models were pretrained on texts of every kind. A decoder of this size, trained on whole pictures alone,
counts by the share of background and knows the length of a row by heart, so any cut breaks it. These cuts take such
shortcuts away. None is a pruning method's choice:

- uniform: tokens at random;
- window: most of a random rectangle, a smaller picture;
- blobs: where a smooth random field is high;
- alike: where the colours point along a random direction, with noise. It keeps tokens that look alike
  (only background, only red things, only edges, ...);
- things: the tokens that show a thing or a glyph, then others at random. It is the only one that looks at the masks of
  a picture. Without it the models counted wrongly whenever the ground was gone, at any budget.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

KINDS = {"uniform": 0.3, "window": 0.1, "blobs": 0.1, "alike": 0.2, "things": 0.3}
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


@dataclass(frozen=True)
class Late:
    """Tokens that leave inside the decoder.

    layer: int64 scalar, the first layer that does not see them; dropped: bool [B, slots].
    """

    layer: Tensor
    dropped: Tensor


def draw_late(rng: np.random.Generator, rows: int, slots: int, layers: int) -> Late:
    """Tokens at random leave before a layer at random, at least one behind the first and one before the last."""
    count = int(rng.choice(COUNTS))
    scores = torch.from_numpy(rng.random((rows, slots)))
    dropped = torch.ones(rows, slots, dtype=torch.bool).scatter(1, scores.topk(count, dim=1).indices, False)
    return Late(torch.tensor(int(rng.integers(1, layers))), dropped)


def draw_cut(
    rng: np.random.Generator, images: np.ndarray, things: np.ndarray, grid: tuple[int, int], count: int
) -> Kept:
    """A cut of each row to `count` tokens.

    Args:
        images: uint8 [B, H, W, 3].
        things: bool [B, slots], row-major over `grid` (rows, columns): what shows a thing or a glyph.
    """
    rows = len(images)
    kinds = rng.choice(list(KINDS), rows, p=list(KINDS.values()))
    looks = _alike(rng, images, grid)
    scores = np.stack(
        [
            looks[k]
            if kind == "alike"
            else things[k] + rng.random(len(things[k]))
            if kind == "things"
            else _SCORES[kind](rng, grid, count)
            for k, kind in enumerate(kinds)
        ]
    )
    index = torch.from_numpy(scores).topk(count, dim=1).indices.sort(dim=1).values
    return Kept(index, torch.from_numpy(rng.random(rows) < ORIGINAL_SHARE))


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


def _alike(rng: np.random.Generator, images: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """[B, slots] mean and spread of each slot's colours along one random direction, with noise of a random strength."""
    batch, height, width, _ = images.shape
    cells = images.reshape(batch, grid[0], height // grid[0], grid[1], width // grid[1], 3)
    looks = np.concatenate([cells.mean((2, 4)), cells.std((2, 4))], axis=-1).reshape(batch, grid[0] * grid[1], -1)
    standard = (looks - looks.mean((0, 1))) / np.maximum(looks.std((0, 1)), 1e-6)
    along = (standard @ rng.normal(size=(batch, looks.shape[2], 1)))[..., 0]
    strength = np.exp(rng.uniform(np.log(0.05), np.log(1.5), (batch, 1)))
    return along / np.maximum(along.std(1, keepdims=True), 1e-6) + strength * rng.normal(size=along.shape)


_SCORES = {"uniform": _uniform, "window": _window, "blobs": _blobs}
