"""Losses on early decoder states, for a tower that cannot know absolute places.

Rotary positions are relative, so the place losses of `losses.py` cannot act on the projector's output. They act
on the visual tokens after an early decoder layer, together with the content losses, lest place drown content.
The words that name an object are asked for its five facts one layer later, options for their markers
and whether they are the answer.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.packing import CHARACTERS, RANKS, Labels
from vlmprune.assets.questions import MARKERS
from vlmprune.assets.world import COLORS, SHAPES, SIZES

_PLATE = 4  # digits on the longest plate
_KINDS = {
    "shape": len(SHAPES),
    "color": len(COLORS),
    "size": len(SIZES),
    "char": len(CHARACTERS),
    "rank": RANKS,
    "order": _PLATE,
}
_HINT_WEIGHTS = (1.0, 1.0, 0.5, 0.3, 0.3, 1.0, 3.0)  # in the order of `TextBatch.hint`
WORD_METRICS = (
    "word_shape",
    "word_color",
    "word_size",
    "word_row",
    "word_column",
    "word_marker",
    "word_match",
)
SLOT_METRICS = ("slot_row", "slot_column", "slot_shape", "slot_order")


class StateHeads(nn.Module):
    """Training-only linear heads on root-mean-square normed decoder states.

    Args:
        hidden: width of the states.
        rows, columns: the largest grid.
    """

    def __init__(self, hidden: int, rows: int, columns: int) -> None:
        super().__init__()
        counts = (len(SHAPES), len(COLORS), len(SIZES), rows, columns, len(MARKERS), 2)
        self.words = nn.ModuleList(nn.Linear(hidden, count) for count in counts)
        self.slots = nn.ModuleDict({name: nn.Linear(hidden, count + 1) for name, count in _KINDS.items()})
        self.row, self.column = nn.Linear(hidden, rows), nn.Linear(hidden, columns)

    def read_words(self, text: Tensor, hint: Tensor) -> tuple[Tensor, Tensor]:
        """The loss of the words, and the values of `WORD_METRICS`.

        Args:
            text: [B, T, hidden]; hint: see `TextBatch.hint`.
        """
        text = _normed(text)
        words = []
        for head, fact in zip(self.words, hint.unbind(-1), strict=True):
            known = fact.flatten()
            losses = _cross_entropy(head, text, known)
            words.append(losses.sum() / (known >= 0).sum().clamp(min=1))
        asked = torch.stack([weight * loss for weight, loss in zip(_HINT_WEIGHTS, words, strict=True)]).sum()
        return asked, torch.stack(words).detach()

    def read_slots(self, slots: Tensor, labels: Labels) -> tuple[Tensor, Tensor]:
        """The loss of the slots [B, slots, hidden], and the values of `SLOT_METRICS`."""
        slots = _normed(slots)
        row = _cross_entropy(self.row, slots, labels.row.repeat(len(slots))).mean()
        column = _cross_entropy(self.column, slots, labels.column.repeat(len(slots))).mean()
        content = torch.zeros_like(row)
        fronts = []
        for name, head in self.slots.items():
            label = getattr(labels, name).flatten()
            losses, front = _cross_entropy(head, slots, label), (label > 0).float()
            fronts.append((losses * front).sum() / front.sum().clamp(min=1))
            content = content + fronts[-1] + 0.25 * losses.mean()
        return row + column + 0.5 * content, torch.stack([row, column, fronts[0], fronts[-1]]).detach()


def _cross_entropy(head: nn.Module, states: Tensor, label: Tensor) -> Tensor:
    """The losses of a head, flat, 0 where the label is -100."""
    return functional.cross_entropy(head(states).float().flatten(0, 1), label, reduction="none", ignore_index=-100)


def _normed(states: Tensor) -> Tensor:
    states = states.float()
    return states * torch.rsqrt(states.pow(2).mean(-1, keepdim=True) + 1e-6)
