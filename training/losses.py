"""Losses: answers, and what each visual token should say about its place in the image."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.packing import CHARACTERS, NUMBER, RANKS, Labels
from training.states import StateHeads
from vlmprune.assets.questions import MARKERS
from vlmprune.assets.world import COLORS, LETTERS, SHAPES, SIZES, TEXTURES

_GROUPS: dict[str, tuple[str, ...]] = {
    "shape": SHAPES,
    "color": tuple(COLORS),
    "size": tuple(SIZES),
    "char": CHARACTERS,
}
_PLACE_SLOPE = 0.6  # of the soft target across rows or columns, per slot
_PLACE_WEIGHT = 2.0  # of the place among the hints
_BACKGROUND_WEIGHT = 0.25
_DIGITS = 11  # values of `Labels.number`
METRICS = (
    "fg_shape",
    "fg_color",
    "fg_size",
    "fg_char",
    "fg_number",
    "fg_rank",
    "row",
    "column",
    "texture",
    "place",
    "cls",
)


class AuxiliaryHeads(nn.Module):
    """Training-only losses on the projector's output: linear heads, and the same words read by the tied embedding.

    Args:
        hidden: width of the projector's output.
        cls_width: width of the CLS output, or None.
        rows, columns: the largest grid.
        ids: token ids of the words.
        states: further heads that read decoder states, or None.
    """

    def __init__(
        self,
        hidden: int,
        cls_width: int | None,
        rows: int,
        columns: int,
        ids: dict[str, int],
        states: StateHeads | None = None,
    ) -> None:
        super().__init__()
        self.states = states
        self.heads = nn.ModuleDict({name: nn.Linear(hidden, len(words) + 1) for name, words in _GROUPS.items()})
        self.heads.update({"number": nn.Linear(hidden, NUMBER * _DIGITS), "rank": nn.Linear(hidden, RANKS)})
        self.row, self.column = nn.Linear(hidden, rows), nn.Linear(hidden, columns)
        kinds = len(SHAPES) + len(COLORS) + len(LETTERS) + len(TEXTURES)
        self.cls = nn.Linear(cls_width, kinds) if cls_width else None
        for name, words in (*_GROUPS.items(), ("texture", TEXTURES), ("marker", MARKERS)):
            self.register_buffer(f"words_{name}", torch.tensor([ids[word] for word in words]), persistent=False)
        ends = [("top", "bottom"), ("above", "below"), ("left", "right")]
        self.register_buffer("ends", torch.tensor([[ids[a], ids[b]] for a, b in ends]), persistent=False)

    def forward(
        self, features: Tensor, placed: Tensor | None, cls: Tensor | None, embedding: Tensor, labels: Labels
    ) -> tuple[Tensor, Tensor]:
        """The sum of the losses, and the values of `METRICS` (foreground only where they say fg).

        Args:
            features: [B, slots, hidden]; placed: the states that should know their place, None to leave that out;
            cls: [B, d] or None; embedding: [words, hidden].
        """
        features = features.float()
        said = _normed(features) @ embedding.float().T
        total = features.new_zeros(())
        metrics: dict[str, Tensor] = {}
        ground = torch.ones_like(labels.shape, dtype=torch.bool)
        for name in _GROUPS:
            label: Tensor = getattr(labels, name)
            front = label > 0
            ground = ground & ~front
            guess = self.heads[name](features).float().flatten(0, 1)
            losses = functional.cross_entropy(guess, label.flatten(), reduction="none")
            fore = _mean(losses, front)
            word = _known(said[..., getattr(self, f"words_{name}")], label - 1)
            total = total + fore + _BACKGROUND_WEIGHT * _mean(losses, ~front) + word
            metrics[f"fg_{name}"] = fore
        metrics["fg_number"] = _known(self.heads["number"](features).unflatten(-1, (NUMBER, _DIGITS)), labels.number)
        metrics["fg_rank"] = _known(self.heads["rank"](features), labels.rank - 1)
        total = total + metrics["fg_number"] + metrics["fg_rank"]
        texture = labels.texture[:, None].expand_as(labels.shape).flatten()
        words = functional.cross_entropy(said[..., self.words_texture].flatten(0, 1), texture, reduction="none")
        metrics["texture"] = _mean(words, ground)
        for name, value in zip(("row", "column", "place"), self._place(placed, embedding, labels), strict=True):
            metrics[name] = value
            total = total + value
        total = total + metrics["texture"]
        if self.cls is not None and cls is not None:
            metrics["cls"] = functional.binary_cross_entropy_with_logits(self.cls(cls).float(), labels.present)
            total = total + metrics["cls"]
        else:
            metrics["cls"] = features.new_zeros(())
        return total, torch.stack([metrics[name] for name in METRICS]).detach()

    def hints(self, early: Tensor, embedding: Tensor, hint: Tensor, labels: Labels) -> Tensor:
        """What a naming word should have found out about its object, see `TextBatch.hint`.

        All are read by the word embedding, the place with the soft targets of the slots' own place.

        Args:
            early: [B, T, hidden]; embedding: [words, hidden]; hint: [B, T, 7].
        """
        embedding = embedding.float()
        facts = hint.unbind(-1)
        total = early.new_zeros(())
        for name, fact in zip(("shape", "color", "size", "marker"), (*facts[:3], facts[5]), strict=True):
            total = total + _known(early @ embedding[getattr(self, f"words_{name}")].T, fact)
        logits = early @ (embedding[self.ends[:, 0]] - embedding[self.ends[:, 1]]).T
        down, across = labels.row.max() / 2 - facts[3].float(), labels.column.max() / 2 - facts[4].float()
        target = torch.sigmoid(_PLACE_SLOPE * torch.stack((down, down, across), dim=-1))
        losses = functional.binary_cross_entropy_with_logits(logits, target, reduction="none").sum(-1)
        return (total + _PLACE_WEIGHT * _mean(losses.flatten(), facts[3] >= 0)) / 6

    def _place(self, placed: Tensor | None, embedding: Tensor, labels: Labels) -> tuple[Tensor, Tensor, Tensor]:
        """Row and column by linear heads; agreement of v (E[top] - E[bottom]) and two like it, summed."""
        if placed is None:
            zero = embedding.new_zeros((), dtype=torch.float32)
            return zero, zero, zero
        placed = placed.float()
        row = functional.cross_entropy(self.row(placed).float().flatten(0, 1), labels.row.repeat(len(placed)))
        column = functional.cross_entropy(self.column(placed).float().flatten(0, 1), labels.column.repeat(len(placed)))
        axes = embedding.float()[self.ends[:, 0]] - embedding.float()[self.ends[:, 1]]
        down, across = (index.max() / 2 - index.float() for index in (labels.row, labels.column))
        target = torch.sigmoid(_PLACE_SLOPE * torch.stack((down, down, across), dim=-1))
        logits = _normed(placed) @ axes.T
        return row, column, functional.binary_cross_entropy_with_logits(logits, target.expand_as(logits)) * 3


def _normed(states: Tensor) -> Tensor:
    return states * torch.rsqrt(states.pow(2).mean(-1, keepdim=True) + 1e-6)


def _mean(losses: Tensor, where: Tensor) -> Tensor:
    chosen = where.flatten().float()
    return (losses * chosen).sum() / chosen.sum().clamp(min=1)


def _known(guess: Tensor, label: Tensor) -> Tensor:
    """Mean cross-entropy of guesses [..., values] where the label is not negative."""
    losses = functional.cross_entropy(guess.float().flatten(0, -2), label.clamp(min=0).flatten(), reduction="none")
    return _mean(losses, label >= 0)


def answer_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Mean cross-entropy over the tokens of answers."""
    return functional.cross_entropy(logits.float().flatten(0, 1), target.flatten(), ignore_index=-100)
