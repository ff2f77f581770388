"""What the tiny models of all Qwen families share: configurations, and pictures as rows of patches."""

from __future__ import annotations

from collections.abc import Callable

import torch

from vlmprune.testing.images import ODD, Arguments, Kind, Slots, blocks, pixels, text
from vlmprune.testing.weights import IMAGE, PATCH, VIDEO, VISION_END, VISION_START
from vlmprune.testing.weights import TEXT as LANGUAGE_MODEL

TOWER = {
    "depth": 4, "hidden_size": 32, "intermediate_size": 48, "num_heads": 4, "patch_size": PATCH,
    "spatial_merge_size": 2, "temporal_patch_size": 2, "in_channels": 3, "out_hidden_size": 32,
}  # fmt: skip
TEXT = {**LANGUAGE_MODEL, "tie_word_embeddings": False}
IDS = {
    "image_token_id": IMAGE, "video_token_id": VIDEO, "vision_start_token_id": VISION_START,
    "vision_end_token_id": VISION_END,
}  # fmt: skip
TYPES = ("mm_token_type_ids", (0, 1, 2))


def _grid(seed: int) -> tuple[int, int, int]:
    if seed == ODD:
        return 1, 2, 16
    rows, cols = [(8, 12), (12, 8), (10, 10)][seed % 3]
    return 1, rows, cols


def _video_grid(seed: int) -> tuple[int, int, int]:
    if seed == ODD:  # and a single frame
        return 1, 2, 16
    return [(2, 4, 8), (3, 6, 4), (2, 8, 6)][seed % 3]


def _patches(grid: tuple[int, int, int]) -> Slots:
    return [slot for frame in range(grid[0]) for slot in blocks(*grid[1:], frame, 2)]


def _image(seed: int) -> tuple[Arguments, list[int]]:
    grid = _grid(seed)
    patches = pixels(grid[1] * grid[2], 3 * 2 * PATCH**2, seed=seed)
    ids = [VISION_START, *[IMAGE] * (grid[1] * grid[2] // 4), VISION_END]
    return {"pixel_values": patches, "image_grid_thw": torch.tensor([grid])}, ids


image = Kind(_image, lambda seed: _patches(_grid(seed)), side=2, frames=2)


def video(
    timestamps: bool = False, seconds: bool = False, grid_of: Callable[[int], tuple[int, int, int]] = _video_grid
) -> Kind:
    """In one block, or a block for each frame with its time as text before it.

    Args:
        timestamps: whether the times stand in the prompt.
        seconds: whether the time between frames is an argument.
        grid_of: frames, rows and columns of patches, by seed.
    """

    def one(seed: int) -> tuple[Arguments, list[int]]:
        frames, rows, cols = grid = grid_of(seed)
        slots = rows * cols // 4
        arguments = {
            "pixel_values_videos": pixels(frames * rows * cols, 3 * 2 * PATCH**2, seed=seed),
            "video_grid_thw": torch.tensor([grid]),
        }
        if seconds:
            arguments["second_per_grid_ts"] = torch.tensor([(0.5, 1.0, 2.0)[seed % 3]])
        if not timestamps:
            return arguments, [VISION_START, *[VIDEO] * (frames * slots), VISION_END]
        ids: list[int] = []
        for frame in range(frames):
            ids += [*text(3, 1000 + 10 * seed + frame), VISION_START, *[VIDEO] * slots, VISION_END]
        return arguments, ids

    return Kind(one, lambda seed: _patches(grid_of(seed)), side=2, frames=2)
