"""The tokens of one running forward: where each physical token came from, and the cuts made so far."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from vlmprune.runtime.positions import compact, gather_positions
from vlmprune.runtime.vision import ImageTokens


@dataclass
class PromptImage:
    """One image of one sample: its tokens and the prompt columns that hold its placeholders."""

    tokens: ImageTokens
    columns: Tensor


@dataclass
class Prompt:
    """What the multimodal model was called with.

    Attributes:
        rows: images of each row of the batch, in prompt order.
        samples: which sample each row belongs to (beams repeat a sample).
        ids: [B, S] token ids, or None when embeddings were given.
        tail: tokens at the end that are not prompt (prompt-lookup candidates, scored answers).
    """

    rows: list[list[PromptImage]]
    samples: list[int]
    ids: Tensor | None
    tail: int = 0


@dataclass
class Layout:
    """Physical tokens [B, P] of the running chunk.

    Attributes:
        source: column of the chunk a token came from; -1 for a filler.
        image: number of its image in the sample; -1 for text and fillers.
        slot: slot in that image; -1 for text and for merged tokens without one.
        origin: row of the image's encoder signals; -1 where there is none.
    """

    source: Tensor
    image: Tensor
    slot: Tensor
    origin: Tensor

    @property
    def valid(self) -> Tensor:
        return self.source >= 0

    def take(self, index: Tensor, valid: Tensor) -> Layout:
        def pick(values: Tensor) -> Tensor:
            return values.gather(1, index.to(values.device)).masked_fill(~valid.to(values.device), -1)

        return Layout(pick(self.source), pick(self.image), pick(self.slot), pick(self.origin))


@dataclass
class Segment:
    """A band of decoder layers in the running forward.

    Attributes:
        start: first layer.
        layout: its tokens.
        positions: their ids, [B, P] or [axes, B, P].
        past: [B, L] validity of what the cache already holds at these layers.
        index: [B, P] where the tokens sat among those that entered layer 0; None when nothing was cut since.
        delta: what decoding must subtract from ids, summed over all turns; None under the original policy.
        own_positions: ids differ from those of layer 0, so the rotary embedding must be computed anew.
    """

    start: int
    layout: Layout
    positions: Tensor
    past: Tensor
    index: Tensor | None = None
    delta: Tensor | None = None
    own_positions: bool = False
    memo: dict[object, Any] = field(default_factory=dict)

    @property
    def valid(self) -> Tensor:
        """[B, L + P] real tokens among the cached and the new ones."""
        return torch.cat([self.past, self.layout.valid], dim=1)

    @property
    def mask(self) -> Tensor | None:
        """2-D key mask in physical coordinates, or None when every token is real."""
        if "mask" not in self.memo:
            valid = self.valid
            self.memo["mask"] = None if bool(valid.all()) else valid
        return self.memo["mask"]

    def cut(self, layout: Layout, index: Tensor, policy: str, text_row: bool) -> None:
        """Go on with the tokens `layout`, found at `index` [B, P] among those of now."""
        positions = gather_positions(self.positions, index)
        if policy == "compact":
            positions, lowered = compact(positions, layout.valid, layout.image, text_row)
            self.delta = lowered if self.delta is None else self.delta + lowered
        self.index = index if self.index is None else self.index.gather(1, index)
        self.layout, self.positions, self.memo = layout, positions, {}


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
