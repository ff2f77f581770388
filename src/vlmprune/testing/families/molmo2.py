"""Molmo 2: a crop of 5 x 5 patches with the whole image, then crops that overlap; a slot has 2 x 2 patches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import accumulate
from typing import Any

import torch

from vlmprune.core.view import Grid
from vlmprune.testing.family import ONE_SIZE, OWN_MASK, Family
from vlmprune.testing.images import Arguments, Kind, Place, Slots, pixels, text
from vlmprune.testing.weights import (
    AROUND_IMAGE,
    IMAGE,
    IMAGE_BEGIN,
    IMAGE_END,
    LINE_BREAK,
    PATCH,
    TEXT,
    VISION_END,
    VISION_START,
    builder,
)

SIDE, MARGIN = 5, 1  # of a crop, and what two crops share, in patches
MARKERS = torch.tensor([IMAGE, LINE_BREAK, IMAGE_BEGIN, IMAGE_END, AROUND_IMAGE, VISION_START, VISION_END])
LATER = "the images of a prompt see each other, and those of an earlier turn could not see the new ones"
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 8, "hidden_size": 32, "intermediate_size": 48}


def _crops(seed: int) -> tuple[int, int]:
    """Rows and columns of crops besides the whole image."""
    return ((1, 2), (2, 1), (1, 1))[seed % 3]


def _canvas(crops: int) -> list[tuple[int, int]]:
    """Along one side, for each patch of the canvas: which crop shows it, and where there."""
    inner = SIDE - 2 * MARGIN
    return [(min(max(at - MARGIN, 0) // inner, crops - 1), at) for at in range(inner * crops + 2 * MARGIN)]


def _pooled(rows: list[list[Place]]) -> Iterator[list[Place]]:
    """Squares of 2 x 2 patches, fewer at the right and at the bottom."""
    for top in range(0, len(rows), 2):
        for left in range(0, len(rows[0]), 2):
            yield [place for row in rows[top : top + 2] for place in row[left : left + 2]]


def _crop(number: int) -> list[list[Place]]:
    return [[(number, row, col) for col in range(SIDE)] for row in range(SIDE)]


def _patches(seed: int) -> Slots:
    down, across = _crops(seed)
    inner = SIDE - 2 * MARGIN
    canvas = [
        [(1 + i * across + j, row - inner * i, col - inner * j) for j, col in _canvas(across)]
        for i, row in _canvas(down)
    ]
    return [*_pooled(_crop(0)), *_pooled(canvas)]


def _frames(seed: int) -> int:
    return 2 + seed % 2


def _video_patches(seed: int) -> Slots:
    return [slot for frame in range(_frames(seed)) for slot in _pooled(_crop(frame))]


def _numbers(slots: Slots) -> torch.Tensor:
    """[slots, 4] the patches behind each slot, -1 where it has fewer."""
    rows = [[(tile * SIDE + row) * SIDE + col for tile, row, col in slot] for slot in slots]
    return torch.tensor([row + [-1] * (4 - len(row)) for row in rows])


def _grids(seed: int) -> tuple[Grid, Grid]:
    """Slots of the whole image, and of its crops put together."""
    down, across = (-(-len(_canvas(crops)) // 2) for crops in _crops(seed))
    return Grid(3, 3), Grid(down, across)


def _image(seed: int) -> tuple[Arguments, list[int]]:
    (down, across), (low, high) = _crops(seed), _grids(seed)
    crops = 1 + down * across
    ids = []
    for start, view in ((AROUND_IMAGE, low), (IMAGE_BEGIN, high)):
        ids += [start, *[*[IMAGE] * view.cols, LINE_BREAK] * view.rows, IMAGE_END]
    return {
        "pixel_values": pixels(crops, SIDE**2, 3 * PATCH**2, seed=seed),
        "image_token_pooling": _numbers(_patches(seed)),
        "image_grids": torch.tensor([[*low[:2], *high[:2]]]),
        "image_num_crops": torch.tensor([crops]),
    }, ids


def _video(seed: int) -> tuple[Arguments, list[int]]:
    ids: list[int] = []
    for frame in range(_frames(seed)):
        ids += [*text(2, 1000 + 10 * seed + frame), VISION_START, *[IMAGE] * 9, VISION_END]
    return {
        "pixel_values_videos": pixels(_frames(seed), SIDE**2, 3 * PATCH**2, seed=seed),
        "video_token_pooling": _numbers(_video_patches(seed)),
        "video_grids": torch.tensor([[_frames(seed), 3, 3]]),
    }, ids


def _views(seed: int) -> tuple[Grid, list[int]]:
    low, high = _grids(seed)
    grid = Grid(max(low.rows, high.rows), max(low.cols, high.cols), 2)
    return grid, [
        (frame * grid.rows + row) * grid.cols + col
        for frame, view in enumerate((low, high))
        for row in range(view.rows)
        for col in range(view.cols)
    ]


def _video_views(seed: int) -> tuple[Grid, list[int]]:
    grid = Grid(3, 3, _frames(seed))
    return grid, list(range(grid.size))


def _joined(inputs: Arguments) -> Arguments:
    """Patches are numbered through all crops of a batch, and markers have the type of images."""
    made = {**inputs, "mm_token_type_ids": torch.isin(inputs["input_ids"], MARKERS).int()}
    for kind, counts in (("image", "image_num_crops"), ("video", "video_grids")):
        if f"{kind}_grids" in inputs:
            grids = inputs[f"{kind}_grids"]
            crops = inputs[counts].view(len(grids), -1)[:, 0].tolist()
            slots = grids[:, :2].prod(1) + grids[:, 2:].prod(1) if kind == "image" else grids.prod(1)
            before = torch.tensor([0, *accumulate(crops)][:-1]).repeat_interleave(slots) * SIDE**2
            numbers = inputs[f"{kind}_token_pooling"]
            made[f"{kind}_token_pooling"] = torch.where(numbers >= 0, numbers + before[:, None], -1)
    return made


def _builder(**text_options: Any) -> Any:
    return builder(
        "Molmo2",
        {**HEADS, "num_hidden_layers": 4, "image_size": [SIDE * PATCH] * 2, "patch_size": PATCH},
        {
            "model_type": "molmo2_text", **TEXT, "head_dim": 8, "additional_vocab_size": 0,
            "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}, **text_options,
        },
        adapter_config={**HEADS, "text_hidden_size": 32, "vision_feature_layer": [3, 1]},
        image_patch_id=IMAGE, image_start_token_id=IMAGE_BEGIN, low_res_image_start_token_id=AROUND_IMAGE,
        image_end_token_id=IMAGE_END, frame_start_token_id=VISION_START, frame_end_token_id=VISION_END,
    )  # fmt: skip


_images = Family(
    "molmo2", _builder(rope_scaling_layers=[1, 3]), Kind(_image, _patches, side=2, views=_views), joined=_joined,
    since=(5, 24), lacks={"by hand": OWN_MASK, "downsample": ONE_SIZE, "new image": LATER},
)  # fmt: skip
FAMILIES = {
    "molmo2": _images,
    "molmo2 video": replace(_images, kind=Kind(_video, _video_patches, side=2, views=_video_views)),
    "molmo2 with norms after": replace(_images, build=_builder(norm_after=True, qk_norm_type="olmo")),
}
