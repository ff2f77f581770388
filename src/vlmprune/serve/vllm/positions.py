"""M-RoPE positions of pruned images: kept tokens stay where they were, and text as if nothing had been dropped.

A token's position is that of its item's first placeholder plus an offset [3] that follows from its column. vLLM knows
the text's positions when a request comes in; those of the embeddings that an encoder hands in travel as further
channels of them, which vLLM hands back (`recompute_mrope_positions`) for each part of a prompt that it computes. With
them travels how many rows of the item come before, from which a part of an item is placed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

AXES = 3
BASE = 256  # digits of a number: every dtype of a model holds whole numbers up to this one
CHANNELS = 2 * (AXES + 1)


def with_offsets(features: Tensor, offsets: Tensor) -> Tensor:
    """[m, D + CHANNELS] features [m, D] of an item with whole offsets [m, AXES] and their row, each as two digits."""
    numbers = torch.cat([offsets, torch.arange(len(offsets), device=offsets.device)[:, None]], dim=1)
    if int(numbers.min()) < 0 or int(numbers.max()) >= BASE * BASE:
        raise RuntimeError(f"Offsets of positions from {int(numbers.min())} to {int(numbers.max())} cannot be carried")
    digits = torch.cat([numbers // BASE, numbers % BASE], dim=1)
    return torch.cat([features, digits.to(features)], dim=1)


def without_offsets(rows: Tensor) -> tuple[Tensor, Tensor]:
    """(features [m, D], offsets and row [m, AXES + 1]) of `with_offsets`."""
    features, digits = rows[:, :-CHANNELS], rows[:, -CHANNELS:].long()
    return features, digits[:, : AXES + 1] * BASE + digits[:, AXES + 1 :]


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


def written(positions: Tensor, visual: Tensor, items: Sequence[Tensor], computed: int) -> Tensor:
    """[AXES, S] positions with those of the encoder's embeddings written.

    Args:
        positions: [AXES, S] as they were.
        visual: [S] which ids are placeholders, with one of which every item begins.
        items: [m, AXES + 1] each, offsets and rows of the part of an item that is computed, in their order from column
            `computed` on; all but the first begin with their first row.
    """
    new, column, begins = positions.clone(), computed, visual.nonzero().squeeze(1)
    for number, own in enumerate(items):
        row = int(own[0, AXES])
        found = begins[begins >= column] if row == 0 else begins[begins == column - row]
        if not len(found) or (row and number) or found[0] + row + len(own) > positions.shape[1]:
            raise RuntimeError(f"{len(own)} embeddings from row {row} of an item on do not fit the placeholders")
        start = int(found[0])
        first = positions[:, start - 1].max() + 1 if start else 0
        column = start + row + len(own)
        new[:, column - len(own) : column] = (own[:, :AXES] + first).T.to(positions)
    return new
