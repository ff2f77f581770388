"""M-RoPE positions of pruned images: kept tokens stay where they were, and text as if nothing had been dropped.

A token's position is the image's first one plus an offset [3] that follows from its slot. vLLM knows the text's
positions when a request comes in; those of the kept tokens travel as further channels of their embeddings, which vLLM
hands back (`recompute_mrope_positions`) for each part of a prompt that it computes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

AXES = 3
BASE = 128  # digits of a position: every dtype of a model holds whole numbers up to 256
CHANNELS = 2 * AXES


def with_offsets(features: Tensor, offsets: Tensor) -> Tensor:
    """[m, D + CHANNELS] features [m, D] with whole offsets [m, AXES], each as two digits."""
    if int(offsets.min()) < 0 or int(offsets.max()) >= BASE * BASE:
        raise RuntimeError(f"Offsets of positions from {int(offsets.min())} to {int(offsets.max())} cannot be carried")
    digits = torch.cat([offsets // BASE, offsets % BASE], dim=1)
    return torch.cat([features, digits.to(features)], dim=1)


def without_offsets(rows: Tensor) -> tuple[Tensor, Tensor]:
    """(features [m, D], offsets [m, AXES]) of `with_offsets`."""
    features, digits = rows[:, :-CHANNELS], rows[:, -CHANNELS:].long()
    return features, digits[:, :AXES] * BASE + digits[:, AXES:]


def shortened(positions: Tensor, blocks: Sequence[tuple[int, int, int]]) -> Tensor:
    """[AXES, S'] positions [AXES, S] without the columns that were dropped.

    Args:
        blocks: for each image its first column, its number of columns, and how many of these stay (the first ones,
            whose positions are still to be written).
    """
    stay = torch.ones(positions.shape[1], dtype=torch.bool)
    for first, whole, kept in blocks:
        stay[first + kept : first + whole] = False
    return positions[:, stay]


def going_on(positions: Tensor) -> int:
    """How far the positions of new tokens lie from their place: they go on behind the last one of [AXES, S] positions.

    So does transformers' `generate`. vLLM goes on behind the largest one, which a long video's last frame may have.
    """
    return int(positions[:, -1].max()) + 1 - positions.shape[1]


def written(positions: Tensor, visual: Tensor, offsets: Tensor, computed: int) -> Tensor:
    """[AXES, S] positions with those of visual tokens written.

    Args:
        positions: [AXES, S] as they were.
        visual: [S] which tokens are visual.
        offsets: [m, AXES] of the first m visual tokens from column `computed` on.
    """
    columns = visual.nonzero().squeeze(1)
    columns = columns[columns >= computed][: len(offsets)]
    if len(columns) != len(offsets):
        raise RuntimeError(f"{len(offsets)} visual tokens do not fit {len(columns)} placeholders")
    new = positions.clone()
    text = (~visual).nonzero().squeeze(1)
    before = torch.searchsorted(text, columns) - 1  # the last text token before each: an image begins behind it
    if bool((before < 0).any()):
        first = torch.zeros(len(columns), dtype=positions.dtype, device=positions.device)
        known = before >= 0
        first[known] = positions[:, text[before[known]]].max(0).values + 1
    else:
        first = positions[:, text[before]].max(0).values + 1
    new[:, columns] = (first[:, None] + offsets).T.to(positions)
    return new
