"""Tiny images and videos as each family's processor hands them over, and which patches stand behind each slot.

The layouts are written down from what the families are known to do, not from their code's output: test_tiny.py holds
them against the models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from tiny_models import (
    AROUND_IMAGE,
    IMAGE,
    LINE_BREAK,
    PATCH,
    TILES,
    VIDEO,
    VISION_END,
    VISION_START,
    WHOLE_IMAGE,
)
from torch import Tensor

FRAMES = 3
Arguments = dict[str, Tensor]
Place = tuple[int, int, int]  # tile (or frame), in the tower's order; row and column in its patch grid
Slots = list[list[Place]]  # the patches behind each slot, the nearest first; none behind a newline or a CLS slot


@dataclass(frozen=True)
class Kind:
    """A kind of image or video.

    Attributes:
        image: arguments and ids in the prompt (placeholders and markers) of one image or video, by seed.
        patches: the patches behind each of its slots, by seed.
    """

    image: Callable[[int], tuple[Arguments, list[int]]]
    patches: Callable[[int], Slots]


def text(length: int, seed: int) -> list[int]:
    return torch.randint(3, 80, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def _pixels(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(100 + seed))


def _blocks(rows: int, cols: int, tile: int = 0, side: int = 1) -> Slots:
    """Row-major slots of one tile, each over a square of `side` x `side` patches."""
    return [
        [(tile, row + i, col + j) for i in range(side) for j in range(side)]
        for row in range(0, rows, side)
        for col in range(0, cols, side)
    ]


def _bilinear(before: int, after: int) -> list[list[tuple[int, float]]]:
    """For each output cell of a resize along one axis (no antialiasing): the input cells and their weights."""
    cells = []
    for cell in range(after):
        centre = max((cell + 0.5) * before / after - 0.5, 0.0)
        low, share = int(centre + 1e-6), centre - int(centre + 1e-6)
        high = min(low + 1, before - 1)
        cells.append([(low, 1 - share), (high, share)] if share > 1e-6 and high > low else [(low, 1.0)])
    return cells


def _resized(rows: int, cols: int, size: tuple[int, int], place: Callable[[int, int], Place]) -> list[Slots]:
    """Rows of slots of a grid resized to `size`: all patches that reach a slot, by falling weight."""
    grid = []
    for by_row in _bilinear(rows, size[0]):
        line = []
        for by_col in _bilinear(cols, size[1]):
            reach = [(-u * v, place(row, col)) for row, u in by_row for col, v in by_col]
            line.append([spot for _, spot in sorted(reach)])
        grid.append(line)
    return grid


def whole(side: int, block: int = 1, before: Iterable[int] = (), after: Iterable[int] = ()) -> Kind:
    """One square image, always as many slots, each over `block` x `block` patches."""
    grid = side // PATCH
    ids = [*before, *[IMAGE] * (grid // block) ** 2, *after]
    return Kind(
        lambda seed: ({"pixel_values": _pixels(1, 3, side, side, seed=seed)}, list(ids)),
        lambda seed: _blocks(grid, grid, side=block),
    )


def _frames(side: int, ids: list[int], patches: Slots) -> Kind:
    return Kind(
        lambda seed: ({"pixel_values_videos": _pixels(1, FRAMES, 3, side, side, seed=seed)}, list(ids)),
        lambda seed: patches,
    )


# Video-LLaVA: 4x4 patches a frame behind its CLS token
frames_with_cls = _frames(16, [VIDEO] * 17 * FRAMES, [spot for t in range(FRAMES) for spot in [[], *_blocks(4, 4, t)]])


def _pooled(frame: int) -> Slots:
    return [slot for line in _resized(5, 5, (3, 3), lambda row, col: (frame, row, col)) for slot in line]


# LLaVA-OneVision: 5x5 patches a frame pooled to 3x3, and one newline slot at the end of the video
frames_pooled = _frames(20, [VIDEO] * (9 * FRAMES + 1), [*[slot for t in range(FRAMES) for slot in _pooled(t)], []])


@dataclass
class Canvas:
    """An anyres image, worked out by hand.

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


def anyres(table: list[Canvas], grid: int) -> Kind:
    """The whole image first (tile 0), then the canvas, with a newline slot after each row."""

    def image(seed: int) -> tuple[Arguments, list[int]]:
        canvas = table[seed % len(table)]
        rows, cols = canvas.shrunk or (len(canvas.rows), len(canvas.cols))
        tiles = 1 + canvas.tiles[0] * canvas.tiles[1]
        pixels = _pixels(1, tiles, 3, grid * PATCH, grid * PATCH, seed=seed)
        ids = [IMAGE] * (grid**2 + rows * (cols + 1))
        return {"pixel_values": pixels, "image_sizes": torch.tensor([canvas.size])}, ids

    def patches(seed: int) -> Slots:
        canvas = table[seed % len(table)]

        def place(row: int, col: int) -> Place:
            row, col = canvas.rows[row], canvas.cols[col]
            return 1 + row // grid * canvas.tiles[1] + col // grid, row % grid, col % grid

        rows, cols = len(canvas.rows), len(canvas.cols)
        lines = _resized(rows, cols, canvas.shrunk or (rows, cols), place)
        return [*_blocks(grid, grid), *[slot for line in lines for slot in [*line, []]]]

    return Kind(image, patches)


def _qwen_grid(seed: int) -> tuple[int, int, int]:
    rows, cols = [(8, 12), (12, 8), (10, 10)][seed % 3]
    return 1, rows, cols


def _qwen_video_grid(seed: int) -> tuple[int, int, int]:
    return [(2, 4, 8), (3, 6, 4), (2, 8, 6)][seed % 3]


def _qwen_patches(grid: tuple[int, int, int]) -> Slots:
    return [slot for frame in range(grid[0]) for slot in _blocks(*grid[1:], frame, 2)]


def _qwen_image(seed: int) -> tuple[Arguments, list[int]]:
    grid = _qwen_grid(seed)
    patches = _pixels(grid[1] * grid[2], 3 * 2 * PATCH**2, seed=seed)
    ids = [VISION_START, *[IMAGE] * (grid[1] * grid[2] // 4), VISION_END]
    return {"pixel_values": patches, "image_grid_thw": torch.tensor([grid])}, ids


qwen_image = Kind(_qwen_image, lambda seed: _qwen_patches(_qwen_grid(seed)))


def qwen_video(timestamps: bool = False, seconds: bool = False) -> Kind:
    """In one block, or a block a frame with its time as text before it."""

    def video(seed: int) -> tuple[Arguments, list[int]]:
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
            ids += [*text(3, 1000 + 10 * seed + frame), VISION_START, *[VIDEO] * slots, VISION_END]
        return arguments, ids

    return Kind(video, lambda seed: _qwen_patches(_qwen_video_grid(seed)))


def _shuffled(tiles: int) -> Slots:
    return [slot for tile in range(tiles) for slot in _blocks(6, 6, tile, 2)]


def _internvl_tiles(seed: int) -> int:
    return (3, 1, 5)[seed % 3]


def _internvl_image(seed: int) -> tuple[Arguments, list[int]]:
    tiles = _internvl_tiles(seed)
    return {"pixel_values": _pixels(tiles, 3, 24, 24, seed=seed)}, [VISION_START, *[IMAGE] * (9 * tiles), VISION_END]


# tiles of 9 slots, the thumbnail last (a single tile has none)
internvl_image = Kind(_internvl_image, lambda seed: _shuffled(_internvl_tiles(seed)))


def _marked_grid(seed: int) -> tuple[int, int]:
    """Rows and columns of tiles besides the whole image; none where the image is not split."""
    return ((1, 2), (2, 2), (0, 0))[seed % 3]


def _marked_image(seed: int) -> tuple[Arguments, list[int]]:
    rows, cols = _marked_grid(seed)
    tiles = rows * cols + 1
    pixels, mask = _pixels(1, tiles, 3, 24, 24, seed=seed), torch.ones(1, tiles, 24, 24, dtype=torch.long)
    if tiles == 1:  # not square: two patches of padding at the right, or at the bottom
        (mask[..., 16:] if seed % 2 == 0 else mask[..., 16:, :]).zero_()
        pixels *= mask[:, :, None]
    slots = [IMAGE] * 9
    ids: list[int] = []
    for row in range(rows):
        for col in range(cols):
            ids += [AROUND_IMAGE, TILES[2 * row + col], *slots]
        ids += [LINE_BREAK]
    ids += [LINE_BREAK] * (rows > 0) + [AROUND_IMAGE, WHOLE_IMAGE, *slots, AROUND_IMAGE]
    return {"pixel_values": pixels, "pixel_attention_mask": mask}, ids


# SmolVLM and Idefics3: 9 slots a tile between markers, a line break after each row of tiles, the whole image last
marked_tiles = Kind(_marked_image, lambda seed: _shuffled(_marked_grid(seed)[0] * _marked_grid(seed)[1] + 1))


def by_turns(image: Kind, video: Kind) -> Kind:
    """Images by even seeds, videos by odd ones."""
    kinds = (image, video)
    return Kind(lambda seed: kinds[seed % 2].image(seed), lambda seed: kinds[seed % 2].patches(seed))


def paint(arguments: Arguments, tile: int, row: int, col: int, value: float) -> Arguments:
    """The arguments of one image or video with all pixels of one patch set to `value` (both frames of a Qwen patch)."""
    name = "pixel_values" if "pixel_values" in arguments else "pixel_values_videos"
    pixels = arguments[name].clone()
    if pixels.dim() == 2:  # Qwen: a row a patch, frame by frame, in 2x2 squares
        rows, cols = next(arguments[key] for key in ("image_grid_thw", "video_grid_thw") if key in arguments)[0, 1:]
        square = (tile * rows // 2 + row // 2) * (cols // 2) + col // 2
        pixels[int(4 * square + 2 * (row % 2) + col % 2)] = value
    else:
        tiles = pixels.view(-1, *pixels.shape[-3:])
        tiles[tile, :, row * PATCH : (row + 1) * PATCH, col * PATCH : (col + 1) * PATCH] = value
    return {**arguments, name: pixels}
