"""Families for the test matrix: tiny models (tiny_models.py) and the prompts around their images (tiny_images.py)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import tiny_images as images
import tiny_models as models
import torch
from tiny_images import Arguments, Kind, Place, paint
from tiny_models import IMAGE, LAYERS, PAD, SUPPRESSED, VIDEO, VOCABULARY, strengthen
from torch import Tensor
from versions import named

__all__ = [
    "FAMILIES", "IMAGE", "LAYERS", "PAD", "SUPPRESSED", "VIDEO", "VOCABULARY", "Family", "alone", "image_numbers",
    "paint", "prompt", "strengthen",
]  # fmt: skip

Sample = list[int | None]
Cell = tuple[int, list[tuple[int, int]]] | None


@dataclass
class Family:
    """A family and modality of the test matrix.

    Attributes:
        name: transformers' model type.
        build: model by attention implementation.
        kind: its images or videos.
        by_sample: whether the tiles of all images of a sample stand in one row of the pixel argument.
        types: argument that tells image tokens from text, and its values for text, images and videos.
        joined: what the arguments of several images still need once they stand one after another.
    """

    name: str
    build: Callable[..., Any]
    kind: Kind
    by_sample: bool = False
    types: tuple[str, tuple[int, int, int]] | None = None
    joined: Callable[[Arguments], Arguments] = dict

    def image(self, seed: int) -> tuple[Arguments, list[int]]:
        """Arguments of one image or video, and its ids in the prompt (placeholders and markers)."""
        return self.kind.image(seed)

    def slots(self, seed: int) -> int:
        """Visual slots of an image or video."""
        return sum(token in (IMAGE, VIDEO) for token in self.image(seed)[1])

    def patches(self, seed: int) -> list[list[Place]]:
        """For each slot all patches (tile or frame, row, column) it is made from, the nearest first.

        Tiles are numbered as the tower sees them. A newline or CLS slot has no patch.
        """
        return self.kind.patches(seed)

    def cells(self, seed: int) -> list[Cell]:
        """For each slot its tile or frame, and the patches there; None for a slot without a patch.

        Where a resized slot reaches over the border of a tile, this is the tile of the nearest patch.
        """
        return [
            (slot[0][0], [(row, col) for tile, row, col in slot if tile == slot[0][0]]) if slot else None
            for slot in self.patches(seed)
        ]

    def painted(self, spots: dict[int, list[Place]], value: float) -> Family:
        """This family with the pixels of those patches set to `value`: {seed of the image: patches}."""

        def image(seed: int) -> tuple[Arguments, list[int]]:
            arguments, ids = self.image(seed)
            for place in spots.get(seed, []):
                arguments = paint(arguments, *place, value)
            return arguments, ids

        return replace(self, kind=Kind(image, self.kind.patches))


QWEN_TYPES = ("mm_token_type_ids", (0, 1, 2))
GEMMA_IMAGE = images.whole(
    32, 2, (models.DOUBLE_BREAK, models.IMAGE_BEGIN), (models.IMAGE_END, models.DOUBLE_BREAK)
)  # pooled over 2x2 patches
KINDS = {
    "llava": images.whole(24),
    "llava with SigLIP": images.whole(24),
    "llava_next": images.anyres(images.NEXT, 4),
    "llava_onevision": images.anyres(images.ONEVISION, 5),
    "llava_onevision video": images.frames_pooled,
    "video_llava": images.whole(16),
    "video_llava video": images.frames_with_cls,
    "qwen2_vl": images.qwen_image,
    "qwen2_vl video": images.qwen_video(),
    "qwen2_5_vl": images.qwen_image,
    "qwen2_5_vl video": images.qwen_video(seconds=True),
    "qwen3_vl": images.qwen_image,
    "qwen3_vl video": images.qwen_video(timestamps=True),
    "qwen3_vl_moe": images.qwen_image,
    "qwen3_5": images.qwen_image,
    "qwen3_5 video": images.qwen_video(timestamps=True),
    "qwen3_5_moe": images.qwen_image,
    "internvl": images.internvl_image,
    "smolvlm": images.marked_tiles,
    "idefics3": images.marked_tiles,
    "gemma3": GEMMA_IMAGE,
    "paligemma": images.whole(24),
    "paligemma2": images.whole(24),
}
for _name in ("llava_onevision", "video_llava", "qwen2_5_vl", "qwen3_vl"):
    KINDS[f"{_name} mixed"] = images.by_turns(KINDS[_name], KINDS[f"{_name} video"])


def _family(key: str, kind: Kind) -> Family:
    name = key.split(" ")[0]
    build = models.llava_siglip if key == "llava with SigLIP" else getattr(models, name)
    if name.startswith("qwen"):
        return Family(name, build, kind, types=QWEN_TYPES)
    if name.startswith("paligemma"):  # all of the prompt is the prefix
        return Family("paligemma", build, kind, types=("token_type_ids", (0, 0, 0)))
    if name == "gemma3":
        return Family(name, build, kind, types=("token_type_ids", (0, 1, 0)))
    return Family(name, build, kind, by_sample=name in ("smolvlm", "idefics3"))


FAMILIES = {key: _family(key, kind) for key, kind in KINDS.items()}


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


def _stacked(tensors: list[Tensor]) -> Tensor:
    """Joined along the first axis; the second (tiles) is filled with zeros up to the longest, where they differ."""
    if tensors[0].dim() > 3:
        longest = max(tensor.shape[1] for tensor in tensors)
        tensors = [
            torch.cat([tensor, tensor.new_zeros(len(tensor), longest - tensor.shape[1], *tensor.shape[2:])], dim=1)
            for tensor in tensors
        ]
    return torch.cat(tensors)


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
            inputs[name] = _stacked([arguments[name] for arguments in visuals if name in arguments])
    if family.types:
        name, (text, image, video) = family.types
        ids = inputs["input_ids"]
        inputs[name] = torch.where(ids == IMAGE, image, torch.where(ids == VIDEO, video, text)).int()
    return named(family.name, family.joined(inputs))


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
