"""Families for the test matrix: tiny models (tiny_models.py) with prompts as each family's processor writes them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import tiny_models
import torch
from tiny_models import (
    AROUND_IMAGE,
    DOUBLE_BREAK,
    IMAGE,
    IMAGE_BEGIN,
    IMAGE_END,
    LAYERS,
    LINE_BREAK,
    PAD,
    PATCH,
    SUPPRESSED,
    TILES,
    VIDEO,
    VISION_END,
    VISION_START,
    VOCABULARY,
    WHOLE_IMAGE,
    strengthen,
)
from torch import Tensor

__all__ = [
    "FAMILIES", "IMAGE", "LAYERS", "PAD", "SUPPRESSED", "VIDEO", "VOCABULARY", "Family", "alone", "image_numbers",
    "prompt", "strengthen",
]  # fmt: skip

FRAMES = 3
Visual = tuple[dict[str, Tensor], list[int]]  # arguments of one image or video, and its ids in the prompt


@dataclass
class Family:
    """A family and modality of the test matrix.

    Attributes:
        name: transformers' model type.
        build: model by attention implementation.
        image: arguments and ids (placeholders and markers) of one image or video, by seed.
        by_sample: whether the tiles of all images of a sample stand in one row of the pixel argument.
        types: argument that tells image tokens from text, and the value for text, images and videos.
    """

    name: str
    build: Callable[..., Any]
    image: Callable[[int], Visual]
    by_sample: bool = False
    types: tuple[str, tuple[int, int, int]] | None = None

    def slots(self, seed: int) -> int:
        """Visual slots of an image or video, by seed."""
        return sum(token in (IMAGE, VIDEO) for token in self.image(seed)[1])


def _text(length: int, seed: int) -> list[int]:
    return torch.randint(3, 80, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def _pixels(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(100 + seed))


def _whole(side: int, slots: int, before: tuple[int, ...] = (), after: tuple[int, ...] = ()) -> Callable[[int], Visual]:
    """One square image, always as many slots."""
    return lambda seed: ({"pixel_values": _pixels(1, 3, side, side, seed=seed)}, [*before, *[IMAGE] * slots, *after])


def _frames(side: int, slots: int) -> Callable[[int], Visual]:
    """A video of square frames, one after another without markers."""
    return lambda seed: ({"pixel_values_videos": _pixels(1, FRAMES, 3, side, side, seed=seed)}, [VIDEO] * slots)


@dataclass
class Canvas:
    """An anyres image, written out by hand.

    Attributes:
        size: height and width of the image in pixels.
        tiles: rows and columns of tiles of the best canvas.
        rows, cols: patches of the canvas that the image covers; the rest is padding, cut from the features.
        shrunk: rows and columns after OneVision's resize, if the canvas is too large for it.
    """

    size: tuple[int, int]
    tiles: tuple[int, int]
    rows: range
    cols: range
    shrunk: tuple[int, int] | None = None


NEXT = [  # tiles of 4x4 patches
    Canvas((10, 30), (1, 2), range(1, 3), range(8)),
    Canvas((30, 9), (2, 1), range(8), range(1, 3)),
    Canvas((26, 40), (2, 2), range(1, 7), range(8)),
    Canvas((12, 60), (1, 3), range(1, 3), range(12)),
]
ONEVISION = [  # tiles of 5x5 patches
    Canvas((10, 30), (1, 2), range(1, 4), range(10)),
    Canvas((30, 9), (2, 1), range(10), range(1, 4)),
    Canvas((32, 40), (2, 2), range(1, 9), range(10), shrunk=(6, 7)),
    Canvas((12, 60), (1, 3), range(1, 4), range(15)),
]


def _anyres(table: list[Canvas], grid: int) -> Callable[[int], Visual]:
    """The whole image first, then the canvas with a newline slot after each row."""

    def image(seed: int) -> Visual:
        canvas = table[seed % len(table)]
        rows, cols = canvas.shrunk or (len(canvas.rows), len(canvas.cols))
        tiles = 1 + canvas.tiles[0] * canvas.tiles[1]
        pixels = _pixels(1, tiles, 3, grid * PATCH, grid * PATCH, seed=seed)
        ids = [IMAGE] * (grid**2 + rows * (cols + 1))
        return {"pixel_values": pixels, "image_sizes": torch.tensor([canvas.size])}, ids

    return image


def _qwen_grid(seed: int) -> tuple[int, int, int]:
    return (1, *[(8, 12), (12, 8), (10, 10)][seed % 3])


def _qwen_video_grid(seed: int) -> tuple[int, int, int]:
    return [(2, 4, 8), (3, 6, 4), (2, 8, 6)][seed % 3]


def _qwen_image(seed: int) -> Visual:
    grid = _qwen_grid(seed)
    patches = _pixels(grid[1] * grid[2], 3 * 2 * PATCH**2, seed=seed)
    ids = [VISION_START, *[IMAGE] * (grid[1] * grid[2] // 4), VISION_END]
    return {"pixel_values": patches, "image_grid_thw": torch.tensor([grid])}, ids


def _qwen_video(timestamps: bool = False, seconds: bool = False) -> Callable[[int], Visual]:
    """In one block, or a block a frame with its time as text before it."""

    def video(seed: int) -> Visual:
        frames, rows, cols = grid = _qwen_video_grid(seed)
        slots = rows * cols // 4
        arguments = {
            "pixel_values_videos": _pixels(frames * rows * cols, 3 * 2 * PATCH**2, seed=seed),
            "video_grid_thw": torch.tensor([grid]),
        }
        if seconds:
            arguments["second_per_grid_ts"] = torch.tensor([(0.5, 1.0, 2.0)[seed % 3]])
        if not timestamps:
            return arguments, [VISION_START, *[VIDEO] * (frames * slots), VISION_END]
        ids: list[int] = []
        for frame in range(frames):
            ids += [*_text(3, 1000 + 10 * seed + frame), VISION_START, *[VIDEO] * slots, VISION_END]
        return arguments, ids

    return video


def _internvl_image(seed: int) -> Visual:
    """Tiles of 9 slots, the thumbnail last (a single tile has none)."""
    tiles = (3, 1, 5)[seed % 3]
    return {"pixel_values": _pixels(tiles, 3, 24, 24, seed=seed)}, [VISION_START, *[IMAGE] * (9 * tiles), VISION_END]


def _marked_tiles(seed: int) -> Visual:
    """SmolVLM and Idefics3: 9 slots a tile between markers, a line break after each row of tiles, the whole last.

    Every third image is not split and not square: padded at the right or at the bottom, by two patches.
    """
    rows, cols = ((1, 2), (2, 2), (0, 0))[seed % 3]
    tiles = rows * cols + 1
    pixels, mask = _pixels(1, tiles, 3, 24, 24, seed=seed), torch.ones(1, tiles, 24, 24, dtype=torch.long)
    if tiles == 1:
        padded = mask[..., 16:] if seed % 2 == 0 else mask[..., 16:, :]
        padded.zero_()
        pixels *= mask[:, :, None]
    slots, ids = [IMAGE] * 9, []
    for row in range(rows):
        for col in range(cols):
            ids += [AROUND_IMAGE, TILES[2 * row + col], *slots]
        ids += [LINE_BREAK]
    ids += [LINE_BREAK] * (rows > 0) + [AROUND_IMAGE, WHOLE_IMAGE, *slots, AROUND_IMAGE]
    return {"pixel_values": pixels, "pixel_attention_mask": mask}, ids


def _by_turns(image: Callable[[int], Visual], video: Callable[[int], Visual]) -> Callable[[int], Visual]:
    """Images by even seeds, videos by odd ones."""
    return lambda seed: (video if seed % 2 else image)(seed)


def _qwen_variants(name: str, video: Callable[[int], Visual], *modalities: str) -> dict[str, Family]:
    visuals = {"": _qwen_image, " video": video, " mixed": _by_turns(_qwen_image, video)}
    build = getattr(tiny_models, name)
    return {name + key: Family(name, build, visuals[key], types=("mm_token_type_ids", (0, 1, 2))) for key in modalities}


_next_image, _onevision_image = _anyres(NEXT, 4), _anyres(ONEVISION, 5)
_onevision_video = _frames(20, FRAMES * 9 + 1)  # 5x5 patches pooled to 3x3, one newline slot at the end
_video_llava_image, _video_llava_video = _whole(16, 16), _frames(16, FRAMES * 17)  # a video keeps the CLS tokens
_gemma_types, _pali_types = ("token_type_ids", (0, 1, 0)), ("token_type_ids", (0, 0, 0))

FAMILIES = {
    "llava": Family("llava", tiny_models.llava, _whole(24, 36)),
    "llava with SigLIP": Family("llava", tiny_models.llava_siglip, _whole(24, 36)),
    "llava_next": Family("llava_next", tiny_models.llava_next, _next_image),
    "llava_onevision": Family("llava_onevision", tiny_models.llava_onevision, _onevision_image),
    "llava_onevision video": Family("llava_onevision", tiny_models.llava_onevision, _onevision_video),
    "llava_onevision mixed": Family(
        "llava_onevision", tiny_models.llava_onevision, _by_turns(_onevision_image, _onevision_video)
    ),
    "video_llava": Family("video_llava", tiny_models.video_llava, _video_llava_image),
    "video_llava video": Family("video_llava", tiny_models.video_llava, _video_llava_video),
    "video_llava mixed": Family(
        "video_llava", tiny_models.video_llava, _by_turns(_video_llava_image, _video_llava_video)
    ),
    **_qwen_variants("qwen2_vl", _qwen_video(), "", " video"),
    **_qwen_variants("qwen2_5_vl", _qwen_video(seconds=True), "", " video", " mixed"),
    **_qwen_variants("qwen3_vl", _qwen_video(timestamps=True), "", " video", " mixed"),
    **_qwen_variants("qwen3_vl_moe", _qwen_video(timestamps=True), ""),
    **_qwen_variants("qwen3_5", _qwen_video(timestamps=True), "", " video"),
    **_qwen_variants("qwen3_5_moe", _qwen_video(timestamps=True), ""),
    "internvl": Family("internvl", tiny_models.internvl, _internvl_image),
    "smolvlm": Family("smolvlm", tiny_models.smolvlm, _marked_tiles, by_sample=True),
    "idefics3": Family("idefics3", tiny_models.idefics3, _marked_tiles, by_sample=True),
    "gemma3": Family(
        "gemma3", tiny_models.gemma3, _whole(32, 16, (DOUBLE_BREAK, IMAGE_BEGIN), (IMAGE_END, DOUBLE_BREAK)),
        types=_gemma_types,
    ),
    "paligemma": Family("paligemma", tiny_models.paligemma, _whole(24, 36), types=_pali_types),
    "paligemma2": Family("paligemma", tiny_models.paligemma2, _whole(24, 36), types=_pali_types),
}  # fmt: skip

Sample = list[int | None]
Row = tuple[list[int], list[int], list[dict[str, Tensor]]]  # ids, number of the image by column, images' arguments


def _row(family: Family, sample: Sample, number: int, seed: int, text: int) -> Row:
    ids = [1, *_text(text - 2, seed + 10 * number)]
    numbers, images = [-1] * len(ids), []
    for place, image_seed in enumerate(sample):
        if image_seed is not None:
            arguments, placeholder = family.image(image_seed)
            ids += placeholder
            numbers += [len(images) if token in (IMAGE, VIDEO) else -1 for token in placeholder]
            images.append(arguments)
        ids += _text(text - 3 + number + place, seed + 10 * number + place + 1)
        numbers += [-1] * (len(ids) - len(numbers))
    return ids, numbers, images


def _padded(tensors: list[Tensor]) -> Tensor:
    """Joined along the first axis; the second (tiles) is filled with zeros up to the longest, where they differ."""
    if tensors[0].dim() > 3:
        longest = max(tensor.shape[1] for tensor in tensors)
        tensors = [
            torch.cat([tensor, tensor.new_zeros(len(tensor), longest - tensor.shape[1], *tensor.shape[2:])], dim=1)
            for tensor in tensors
        ]
    return torch.cat(tensors)


def _batch(family: Family, rows: list[Row]) -> dict[str, Tensor]:
    width = max(len(ids) for ids, _, _ in rows)
    inputs = {
        "input_ids": torch.tensor([[PAD] * (width - len(ids)) + ids for ids, _, _ in rows]),
        "attention_mask": torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids, _, _ in rows]),
    }
    images = [image for _, _, images in rows for image in images]
    for name in dict.fromkeys(name for image in images for name in image):
        if family.by_sample:  # a sample without an image is all padding
            tiles = [torch.cat([i[name] for i in images] or [images[0][name][:, :0]], dim=1) for _, _, images in rows]
            inputs[name] = _padded(tiles)
        else:
            inputs[name] = _padded([image[name] for image in images if name in image])
    if family.types:
        name, (text, image, video) = family.types
        ids = inputs["input_ids"]
        inputs[name] = torch.where(ids == IMAGE, image, torch.where(ids == VIDEO, video, text)).int()
    return inputs


def prompt(family: Family, samples: list[Sample], seed: int = 0, text: int = 7) -> dict[str, Tensor]:
    """A left-padded batch. A sample is a list of image seeds; text stands before, between and after the images.

    `None` stands for no image (a longer stretch of text).
    """
    return _batch(family, [_row(family, sample, number, seed, text) for number, sample in enumerate(samples)])


def alone(family: Family, samples: list[Sample], row: int, seed: int = 0, text: int = 7) -> dict[str, Tensor]:
    """One sample of that batch by itself, without padding."""
    return _batch(family, [_row(family, samples[row], row, seed, text)])


def image_numbers(family: Family, samples: list[Sample], seed: int = 0, text: int = 7) -> Tensor:
    """For each column of `prompt`, the number of its image or video in its sample; -1 elsewhere: [batch, columns].

    All blocks of an image (tiles, frames) have its number; markers between them have -1.
    """
    rows = [_row(family, sample, number, seed, text)[1] for number, sample in enumerate(samples)]
    width = max(map(len, rows))
    return torch.tensor([[-1] * (width - len(row)) + row for row in rows])
