"""A family's tiny model with what is known of it, and the prompts around its images."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from vlmprune.core.errors import UserError
from vlmprune.core.view import Grid
from vlmprune.testing import images
from vlmprune.testing.images import Arguments, Kind, Place, Shares, Slots, paint
from vlmprune.testing.weights import IMAGE, PAD, VIDEO

Sample = list[int | None]
Cell = tuple[int, list[tuple[int, int]]] | None

SEEDS = range(4)  # of images and videos of every shape

# What the tests run on a family unless its declaration says in `lacks` why not: columns of docs/models.md. Without an
# encoder, all methods that read one are left out.
MODES = ("encoder", "by hand", "downsample", "sampling", "static cache", "lookup", "new image", "hand loop")
# and reasons that several families have
OUTSIDE = "slots outside a grid (tiles, newline or CLS slots), so that there is no one grid to shrink"
ONE_SIZE = "the encoder takes pictures of one size, so that resizing saves no tokens"
OWN_WINDOW = "the text model alone counts its sliding windows in the tokens that are left, not in positions"
OWN_MASK = "the text model alone makes no two-way masks, so that there is no such reference"


@dataclass
class Family:
    """A family and modality of the test matrix: all that the tests know of it.

    Attributes:
        name: transformers' model type.
        build: the tiny model by attention implementation.
        kind: its images or videos.
        by_sample: whether the tiles of all images of a sample stand in one row of the pixel argument.
        types: argument that tells image tokens from text, and its values for text, images and videos.
        along: the axis along which an argument's images stand side by side, where that is not the first.
        joined: what the arguments of a batch still need once those of its images stand one after another.
        cls: whether the encoder has a CLS token.
        cls_last: whether that stands behind the patches.
        used: encoder layer whose output the projector reads, counted from the last (-1).
        tower_rows: whether there is a row of the encoder for each slot before the projector.
        window: slots along each side of the windows that some encoder layers see; 0 where all see the whole image.
        recurrent: whether some decoder layers are recurrent.
        cut_up_to: the last decoder layer before which tokens may be cut, where later ones read keys stored from it on.
        first_position: position id of the first token.
        since: the first minor release of transformers on which it is tested; on earlier ones it is left out.
        lacks: which of `MODES` cannot be tested on it, and why; the tests leave these out.
    """

    name: str
    build: Callable[..., Any]
    kind: Kind
    by_sample: bool = False
    types: tuple[str, tuple[int, int, int]] | None = None
    along: Mapping[str, int] = field(default_factory=dict)
    joined: Callable[[Arguments], Arguments] = dict
    cls: bool = False
    cls_last: bool = False
    used: int = -1
    tower_rows: bool = False
    window: int = 0
    recurrent: bool = False
    cut_up_to: int | None = None
    first_position: int = 0
    since: tuple[int, int] = (5, 19)
    lacks: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        unknown = [mode for mode in self.lacks if mode not in MODES]
        if unknown:
            raise UserError(f"{self.name}: lacks={unknown[0]!r} must be one of {', '.join(map(repr, MODES))}.")

    def image(self, seed: int) -> tuple[Arguments, list[int]]:
        """Arguments of one image or video, and its ids in the prompt (placeholders and markers)."""
        return self.kind.image(seed)

    def slots(self, seed: int) -> int:
        """Visual slots of an image or video."""
        return sum(token in (IMAGE, VIDEO) for token in self.image(seed)[1])

    def patches(self, seed: int) -> Slots:
        """For each slot all patches (tile or frame, row, column) it is made from, the nearest first.

        Tiles are numbered as the tower sees them. A newline or CLS slot has no patch.
        """
        return self.kind.patches(seed)

    def shares(self, seed: int) -> Shares:
        """For each slot what part of each of its patches is in it."""
        return self.kind.shares(seed)

    def cells(self, seed: int) -> list[Cell]:
        """For each slot its tile or frame, and the patches there; None for a slot without a patch.

        Where a resized slot reaches over the border of a tile, this is the tile of the nearest patch.
        """
        return [
            (slot[0][0], [(row, col) for tile, row, col in slot if tile == slot[0][0]]) if slot else None
            for slot in self.patches(seed)
        ]

    def slot_grid(self, seed: int) -> tuple[Grid, list[set[int]]]:
        """The slot grid, and for each slot the cells it may be said to show (-1: none)."""
        if self.kind.views:
            grid, shown = self.kind.views(seed)
            return grid, [{cell} for cell in shown]
        # several where patches of different cells weigh alike in it
        slots, pooled = self.patches(seed), self.kind.pooled(seed)
        frames, rows, cols = (1 + max(place[axis] for slot in slots for place in slot) for axis in range(3))
        if pooled:  # the grid is that of the slots
            number = itertools.count()
            return Grid(*pooled, frames), [{next(number)} if slot else {-1} for slot in slots]
        side = self.kind.side
        grid = Grid(rows // side, cols // side, frames)

        def cell(place: Place) -> int:
            return (place[0] * grid.rows + place[1] // side) * grid.cols + place[2] // side

        return grid, [{cell(place) for place in slot} or {-1} for slot in slots]

    def runs(self, seed: int) -> int:
        """How many stretches the slots of an image or video stand in, with text (markers, timestamps) between them."""
        slots = [token in (IMAGE, VIDEO) for token in self.image(seed)[1]]
        return sum(here and not before for before, here in zip([False, *slots], slots, strict=False))

    @property
    def in_parts(self) -> bool:
        """Whether some of its images or videos stand in several tiles or frames."""
        return any(len({slot[0][0] for slot in self.patches(seed) if slot}) > 1 for seed in SEEDS)

    @property
    def one_shape(self) -> bool:
        """Whether all its images or videos have one shape."""
        shapes = [[value.shape for value in self.image(seed)[0].values()] for seed in (*SEEDS, images.ODD)]
        return all(shape == shapes[0] for shape in shapes) and len({self.slots(seed) for seed in SEEDS}) == 1

    @property
    def modalities(self) -> set[str]:
        """What it has: "image", "video" or both."""
        names = {name for seed in SEEDS for name in self.image(seed)[0] if name.startswith("pixel_values")}
        return {"video" if name == "pixel_values_videos" else "image" for name in names}

    @property
    def mixed(self) -> bool:
        """Whether it has images and videos, for one batch of both."""
        return len(self.modalities) > 1

    @property
    def text_between(self) -> bool:
        """Whether text stands between the slots of some of its images or videos."""
        return any(self.runs(seed) > 1 for seed in SEEDS)

    @property
    def padded(self) -> bool:
        """Whether some of its tiles are filled up with pixels of nothing, which the encoder does not see."""
        masks = (self.image(seed)[0].get("pixel_attention_mask") for seed in SEEDS)
        return any(mask is not None and mask.ndim > 2 and not bool(mask.all()) for mask in masks)

    def painted(self, spots: dict[int, list[Place]], value: float) -> Family:
        """This family with the pixels of those patches set to `value`: {seed of the image: patches}."""

        def image(seed: int) -> tuple[Arguments, list[int]]:
            arguments, ids = self.image(seed)
            for place in spots.get(seed, []):
                arguments = paint(arguments, *place, value)
            return arguments, ids

        return replace(self, kind=replace(self.kind, image=image))


@dataclass
class Row:
    """A sample's prompt: ids, number of the image by column (-1 for none), and the images' arguments."""

    ids: list[int]
    numbers: list[int]
    images: list[Arguments]


def _row(family: Family, samples: list[Sample], number: int, seed: int, text: int) -> Row:
    row = Row([1, *images.text(text - 2, seed + 10 * number)], [-1] * (text - 1), [])
    for place, image_seed in enumerate(samples[number]):
        if image_seed is not None:
            arguments, ids = family.image(image_seed)
            row.ids += ids
            row.numbers += [len(row.images) if token in (IMAGE, VIDEO) else -1 for token in ids]
            row.images.append(arguments)
        row.ids += images.text(text - 3 + number + place, seed + 10 * number + place + 1)
        row.numbers += [-1] * (text - 3 + number + place)
    return row


def _stacked(tensors: list[Tensor], axis: int = 0) -> Tensor:
    """Joined along an axis. If that is the first, the others (tiles, height, width) are filled with zeros."""
    if axis:
        return torch.cat(tensors, dim=axis)
    longest = [max(sizes) for sizes in zip(*(tensor.shape[1:] for tensor in tensors), strict=True)]
    return torch.cat([_filled(tensor, longest) for tensor in tensors])


def _filled(tensor: Tensor, sizes: list[int]) -> Tensor:
    """[n, ...] with zeros behind, so that the other axes have these sizes."""
    missing = [size - own for size, own in zip(sizes, tensor.shape[1:], strict=True)]
    return torch.nn.functional.pad(tensor, [part for size in reversed(missing) for part in (0, size)])


def _batch(family: Family, rows: list[Row]) -> dict[str, Tensor]:
    width = max(len(row.ids) for row in rows)
    inputs = {
        "input_ids": torch.tensor([[PAD] * (width - len(row.ids)) + row.ids for row in rows]),
        "attention_mask": torch.tensor([[0] * (width - len(row.ids)) + [1] * len(row.ids) for row in rows]),
    }
    visuals = [arguments for row in rows for arguments in row.images]
    for name in dict.fromkeys(name for arguments in visuals for name in arguments):
        if family.by_sample:  # a sample without an image has padding only
            nothing = visuals[0][name][:, :0]
            inputs[name] = _stacked([torch.cat([nothing, *(v[name] for v in row.images)], dim=1) for row in rows])
        else:
            own = [arguments[name] for arguments in visuals if name in arguments]
            inputs[name] = _stacked(own, family.along.get(name, 0))
    if family.types:
        name, (text, image, video) = family.types
        ids = inputs["input_ids"]
        inputs[name] = torch.where(ids == IMAGE, image, torch.where(ids == VIDEO, video, text)).int()
    return family.joined(inputs)


def prompt(family: Family, samples: list[Sample], seed: int = 0, text: int = 7) -> dict[str, Tensor]:
    """A left-padded batch. A sample is a list of image seeds; text stands before, between and after the images.

    `None` stands for no image (a longer stretch of text).
    """
    return _batch(family, [_row(family, samples, number, seed, text) for number in range(len(samples))])


def alone(family: Family, samples: list[Sample], row: int, seed: int = 0, text: int = 7) -> dict[str, Tensor]:
    """One sample of that batch by itself, without padding."""
    return _batch(family, [_row(family, samples, row, seed, text)])


def image_numbers(family: Family, samples: list[Sample], seed: int = 0, text: int = 7) -> Tensor:
    """For each column of `prompt`, the number of its image or video in its sample; -1 elsewhere: [batch, columns].

    All blocks of an image (tiles, frames) have its number; markers between them have -1.
    """
    rows = [_row(family, samples, number, seed, text).numbers for number in range(len(samples))]
    width = max(map(len, rows))
    return torch.tensor([[-1] * (width - len(row)) + row for row in rows])
