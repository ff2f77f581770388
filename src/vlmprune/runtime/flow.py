"""The tokens of one running forward: where each physical token came from, and the cuts made so far."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vlmprune.runtime.positions import compact, gather_positions
from vlmprune.runtime.vision import ImageTokens


class ImageAt(NamedTuple):
    """Which image of a batch: the row, and the image's number among those of the row."""

    row: int
    number: int


@dataclass
class PromptImage:
    """One image of one sample: its tokens and the prompt columns that hold its placeholders."""

    tokens: ImageTokens
    columns: Tensor

    def to(self, device: torch.device) -> PromptImage:
        return PromptImage(self.tokens.to(device), self.columns.to(device))


def standing(columns: Tensor, slots: Tensor, made: bool) -> tuple[Tensor, Tensor]:
    """For each token left of an image: the column that lends it its position, and the one at which it stands.

    Args:
        columns: [count] of the image's placeholders.
        slots: [m] of the tokens.
        made: whether these are new tokens, and not some of the old ones, which stay where they are.
    """
    if made:
        return lenders(columns, slots)
    return columns[slots], columns[slots]


def lenders(columns: Tensor, slots: Tensor) -> tuple[Tensor, Tensor]:
    """For new tokens with these slots: the column that lends each its position, and where its stretch begins.

    New tokens stay in the order they were made, together where the stretch of placeholders of their slot begins
    (a video's frames may stand apart). One without a slot goes with the next that has one, at its first column.
    """
    starts = torch.cat([columns[:1], columns[1:][columns.diff() > 1]])
    known = (slots >= 0).nonzero().squeeze(1)
    if not len(known):
        return starts[:1].expand(len(slots)), starts[:1].expand(len(slots))
    order = torch.arange(len(slots), device=slots.device)
    following = slots[known[torch.searchsorted(known, order).clamp(max=len(known) - 1)]]
    begin = starts[torch.searchsorted(starts, columns[following], right=True) - 1]
    return torch.where(slots >= 0, columns[following], begin), begin


@dataclass
class Prompt:
    """What the multimodal model was called with.

    Attributes:
        rows: images of each row of the batch, in prompt order.
        samples: which sample each row belongs to (beams repeat a sample).
        ids: [B, S] token ids, or None when embeddings were given.
        tail: tokens at the end that are not prompt (prompt-lookup candidates, scored answers).
        blocks: [B, S] number of the block that a token sees all of, -1 for a token that attends causally; None when
            all do.
        seconds: time that reading the encoder took for these images.
        scores: what computed attention statistics of the encoder.
    """

    rows: list[list[PromptImage]]
    samples: list[int]
    ids: Tensor | None
    tail: int = 0
    blocks: Tensor | None = None
    seconds: float = 0.0
    scores: set[str] = field(default_factory=set)

    def __getitem__(self, at: ImageAt) -> PromptImage:
        return self.rows[at.row][at.number]

    def images_of(self, row: int) -> Iterator[ImageAt]:
        """The images of a row, in prompt order."""
        return (ImageAt(row, number) for number in range(len(self.rows[row])))

    def by_row(self) -> list[list[ImageAt]]:
        """The images of every row."""
        return [list(self.images_of(row)) for row in range(len(self.rows))]


@dataclass
class Layout:
    """Physical tokens [B, P] of the running chunk.

    Attributes:
        source: column of the chunk a token came from; -1 for a filler.
        image: number of its image in the sample; -1 for text and fillers.
        slot: slot in that image; -1 for text and for merged tokens without one.
        origin: row of the image's encoder signals; -1 where there is none.
        place: index in the whole sequence, by which sliding windows are measured.
        block: number of the block that the token sees all of; -1 for a token that attends causally.
    """

    source: Tensor
    image: Tensor
    slot: Tensor
    origin: Tensor
    place: Tensor
    block: Tensor

    @property
    def valid(self) -> Tensor:
        return self.source >= 0

    def tokens_of(self, at: ImageAt) -> Tensor:
        """Physical indices of the tokens of an image."""
        return (self.image[at.row] == at.number).nonzero().squeeze(1)

    def take(self, index: Tensor, valid: Tensor) -> Layout:
        def pick(values: Tensor) -> Tensor:
            return values.gather(1, index.to(values.device)).masked_fill(~valid.to(values.device), -1)

        return Layout(*(pick(getattr(self, field.name)) for field in fields(self)))

    def in_reading_order(self) -> None:
        """Let the places rise from token to token, where merged tokens are read in another order than their lenders.

        A sliding layer stores the last tokens in reading order: its window must not reach behind one that it lets go.
        """
        step = torch.arange(self.place.shape[1], device=self.place.device)
        spare = (self.place.sort(dim=1).values - step).flip(1).cummin(dim=1).values.flip(1)
        self.place = spare + step

    def close_gaps(self) -> Tensor:
        """Let the places count on without gaps up to the last token's, which stays.

        Returns:
            [B, 1] by how much the first token's place, and so everything before it, moves up.
        """
        first = self.place.shape[1] - self.valid.sum(1, keepdim=True)
        before = self.place.gather(1, first)
        self.place = self.place[:, -1:] - torch.arange(self.place.shape[1] - 1, -1, -1, device=first.device)
        return self.place.gather(1, first) - before


@dataclass
class Segment:
    """A band of decoder layers in the running forward.

    Attributes:
        start: first layer.
        layout: its tokens.
        positions: their ids, [B, P] or [axes, B, P].
        past: [B, L] validity of what the cache already holds at these layers.
        past_place: [B, L] its places.
        index: [B, P] where the tokens sat among those that entered layer 0; None when nothing was cut since.
        delta: what decoding must subtract from ids, summed over all turns; None under the original policy.
        renumbered: [B] rows whose ids were re-numbered in any turn; None with `delta`.
        own_positions: ids differ from those of layer 0, so the rotary embedding must be computed again.
        full: whether all tokens are real, cached and new ones; None until somebody asks, as a GPU must be waited for.
    """

    start: int
    layout: Layout
    positions: Tensor
    past: Tensor
    past_place: Tensor
    index: Tensor | None = None
    delta: Tensor | None = None
    renumbered: Tensor | None = None
    own_positions: bool = False
    full: bool | None = None
    memo: dict[object, Any] = field(default_factory=dict)

    @property
    def valid(self) -> Tensor:
        """[B, L + P] real tokens among the cached and the new ones."""
        return torch.cat([self.past, self.layout.valid], dim=1)

    @property
    def places(self) -> Tensor:
        """[B, L + P] places of the cached and the new tokens."""
        return torch.cat([self.past_place, self.layout.place], dim=1)

    @property
    def mask(self) -> Tensor | None:
        """2-D key mask in physical coordinates, or None when every token is real."""
        if self.full is None:
            self.full = bool(self.valid.all())
        return None if self.full else self.valid

    def _changed(self, positions: Tensor, valid: Tensor) -> Tensor:
        """[B] rows that have other tokens than before: fewer, or some in the place of others that merged into them."""
        before, width = self.layout.valid, min(valid.shape[1], self.layout.valid.shape[1])
        now, then = _last_ids(positions, valid, width), _last_ids(self.positions, before, width)
        other = (now != then).any(-1)
        fewer = valid.sum(1) != before.sum(1)
        return fewer | (other if other.ndim == 1 else other.any(0))

    def cut(self, layout: Layout, index: Tensor, policy: str, text_row: bool, shift: Tensor | None, even: bool) -> None:
        """Go on with the tokens `layout`, found at `index` [B, P] among those of now.

        Args:
            shift: [B, 1] moves places.
            even: whether no row needs fillers, all having the same number of tokens.
        """
        positions = gather_positions(self.positions, index)
        if policy == "compact":
            dropped = self._changed(positions, layout.valid)
            positions, lowered = compact(positions, layout.valid, layout.image, text_row, dropped)
            self.delta = lowered if self.delta is None else self.delta + lowered
            self.renumbered = dropped if self.renumbered is None else self.renumbered | dropped
        if shift is not None:
            self.past_place = self.past_place + shift
        self.index = index if self.index is None else self.index.gather(1, index)
        self.full = (even and self.full) or None
        self.layout, self.positions, self.memo = layout, positions, {}


def _last_ids(positions: Tensor, valid: Tensor, width: int) -> Tensor:
    """[B, width] or [axes, B, width]: the ids of the last real tokens, right-aligned, and -1 before them."""
    order = valid.long().sort(dim=1, stable=True).indices[:, -width:]
    return gather_positions(positions, order).masked_fill(~valid.gather(1, order), -1)


def pad_left(orders: list[Tensor], device: torch.device) -> tuple[Tensor, Tensor]:
    """Ragged rows to `index` [B, P] and `valid` [B, P], fillers on the left so that the last token stays last."""
    width = max(len(order) for order in orders)
    index = torch.zeros(len(orders), width, dtype=torch.long, device=device)
    valid = torch.zeros(len(orders), width, dtype=torch.bool, device=device)
    for row, order in enumerate(orders):
        index[row, width - len(order) :] = order.to(device)
        valid[row, width - len(order) :] = True
    return index, valid


def gather_rows(values: Tensor, index: Tensor) -> Tensor:
    """values [B or 1, L, ...] at `index` [B, P], wherever the layer lives."""
    index = index.to(values.device)
    if values.shape[0] != index.shape[0]:
        values = values.expand(index.shape[0], *values.shape[1:])
    return values[torch.arange(index.shape[0], device=values.device)[:, None], index]
