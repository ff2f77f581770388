"""Kinds of tiny images and videos as a processor hands them over, and which patches stand behind each slot.

The layouts are written down from what the families are known to do, not from their code's output: tests/test_tiny.py
holds them against the models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vlmprune.core.view import Grid
from vlmprune.testing.weights import IMAGE, PATCH

ODD = 99  # the seed of a picture of odd shape, where a family takes pictures of any shape: a single row of slots
FRAMES = 3  # of the videos of families that take pictures of one size
Arguments = dict[str, Tensor]
Place = tuple[int, int, int]  # tile (or frame), in the tower's order; row and column in its patch grid
Slots = list[list[Place]]  # the patches behind each slot, the nearest first; none behind a newline or a CLS slot
Shares = list[list[float]]  # what part of each of these patches is in the slot


@dataclass(frozen=True)
class Kind:
    """A kind of image or video.

    Attributes:
        image: arguments and ids in the prompt (placeholders and markers) of one image or video, by seed.
        patches: the patches behind each of its slots, by seed.
        side: of the square of patches behind a slot, in patches.
        frames: how many frames of a video lie behind one patch (Qwen's temporal_patch_size).
        resampled: shares of the patches in each slot, by seed, where features are resized; without, all weigh alike.
        pooled: rows and columns of slots, by seed, where a frame's features are resized to a smaller grid.
        views: the slot grid and the cell of each slot, by seed, where patches do not tell them (Molmo 2's two views).
    """

    image: Callable[[int], tuple[Arguments, list[int]]]
    patches: Callable[[int], Slots]
    side: int = 1
    frames: int = 1
    resampled: Callable[[int], Shares] | None = None
    pooled: Callable[[int], tuple[int, int] | None] = lambda seed: None
    views: Callable[[int], tuple[Grid, list[int]]] | None = None

    def shares(self, seed: int) -> Shares:
        """What part of each patch is in its slot, beside `patches`."""
        if self.resampled:
            return self.resampled(seed)
        return [[1 / len(slot) for _ in slot] for slot in self.patches(seed)]


def text(length: int, seed: int) -> list[int]:
    """Ids of ordinary tokens."""
    return torch.randint(3, 80, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def pixels(*shape: int, seed: int) -> Tensor:
    """Noise."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(100 + seed))


def blocks(rows: int, cols: int, tile: int = 0, side: int = 1) -> Slots:
    """Row-major slots of one tile of rows x cols patches, each over a square of `side` x `side` patches."""
    return [
        [(tile, row + i, col + j) for i in range(side) for j in range(side)]
        for row in range(0, rows, side)
        for col in range(0, cols, side)
    ]


def shuffled(tiles: int) -> Slots:
    """Tiles of 6 x 6 patches, 2 x 2 of which make a slot."""
    return [slot for tile in range(tiles) for slot in blocks(6, 6, tile, 2)]


def tiled(ids: Callable[[int], list[int]]) -> Kind:
    """Three tiles of 24 x 24 pixels, one or five, by seed: 9 slots each, over 2 x 2 patches.

    Args:
        ids: in the prompt, by the number of tiles.
    """

    def tiles(seed: int) -> int:
        return (3, 1, 5)[seed % 3]

    def image(seed: int) -> tuple[Arguments, list[int]]:
        return {"pixel_values": pixels(tiles(seed), 3, 24, 24, seed=seed)}, ids(tiles(seed))

    return Kind(image, lambda seed: shuffled(tiles(seed)), side=2)


def whole(side: int, block: int = 1, before: Iterable[int] = (), after: Iterable[int] = ()) -> Kind:
    """One square image, always as many slots, each over `block` x `block` patches.

    Args:
        side: of the image, in pixels.
        block: side of the square behind a slot, in patches of 4 x 4 pixels.
        before, after: ids of the markers around the slots.
    """
    grid = side // PATCH
    ids = [*before, *[IMAGE] * (grid // block) ** 2, *after]
    return Kind(
        lambda seed: ({"pixel_values": pixels(1, 3, side, side, seed=seed)}, list(ids)),
        lambda seed: blocks(grid, grid, side=block),
        side=block,
    )


def frames(side: int, ids: list[int], patches: Slots) -> Kind:
    """Videos of square frames, always as many slots."""
    return Kind(
        lambda seed: ({"pixel_values_videos": pixels(1, FRAMES, 3, side, side, seed=seed)}, list(ids)),
        lambda seed: patches,
    )


def by_turns(image: Kind, video: Kind) -> Kind:
    """Images by even seeds, videos by odd ones."""
    kinds = (image, video)
    return replace(
        image,
        image=lambda seed: kinds[seed % 2].image(seed),
        patches=lambda seed: kinds[seed % 2].patches(seed),
        resampled=lambda seed: kinds[seed % 2].shares(seed),
        pooled=lambda seed: kinds[seed % 2].pooled(seed),
    )


def places_of(arguments: Arguments) -> Tensor | None:
    """[tiles, patches, 2] column and row of each patch, where an argument says them; -1 for padding."""
    if (shapes := arguments.get("spatial_shapes")) is not None:  # LFM2-VL: one picture, in raster order
        (rows, cols), number = shapes[0].tolist(), torch.arange(arguments["pixel_values"].shape[1])
        places = torch.stack([number % cols, number // cols], dim=-1)
        return torch.where(number[:, None] < rows * cols, places, -1)[None]
    return next((value for name, value in arguments.items() if name.endswith("_position_ids")), None)


def packed(picture: Tensor) -> Tensor:
    """[3, height, width] as [1, 3, PATCH, patches * PATCH], one patch beside the other (MiniCPM-V)."""
    return picture.unflatten(1, (-1, PATCH)).transpose(1, 2).flatten(2)[None]


def sizes_of(arguments: Arguments) -> Tensor | None:
    """[pictures, 2] rows and columns of patches, where these stand side by side as `packed` lays them."""
    return next((value for name, value in arguments.items() if name.startswith("target_sizes")), None)


def grid_of(arguments: Arguments) -> tuple[int, int, int] | None:
    """Frames, rows and columns of patches of one image or video, where an argument says them."""
    found = next((value[0].tolist() for name, value in arguments.items() if name.endswith("_grid_thw")), None)
    return None if found is None else (found[0], found[1], found[2])


def crop_patches(arguments: Arguments) -> list[Place]:
    """The patches of pictures, tiles or crops in raster order, as they stand in the tower."""
    pixels = arguments["pixel_values" if "pixel_values" in arguments else "pixel_values_videos"]
    sizes, grid = sizes_of(arguments), grid_of(arguments)
    if sizes is not None:  # MiniCPM-V: one picture
        tiles, rows, cols = 1, *sizes[0].tolist()
    elif pixels.dim() == 3:  # a row for each patch of square crops
        tiles, rows, cols = pixels.shape[0], *(round(pixels.shape[1] ** 0.5),) * 2
    elif grid is not None:
        tiles, rows, cols = grid
    else:
        tiles, rows, cols = pixels.shape[:-3].numel(), pixels.shape[-2] // PATCH, pixels.shape[-1] // PATCH
    return [(tile, row, col) for tile in range(tiles) for row in range(rows) for col in range(cols)]


def paint(arguments: Arguments, tile: int, row: int, col: int, value: float) -> Arguments:
    """The arguments of one image or video with all pixels of one patch set to `value` (both frames of a Qwen patch)."""
    name = "pixel_values" if "pixel_values" in arguments else "pixel_values_videos"
    painted = arguments[name].clone()
    grid = grid_of(arguments)
    if (places := places_of(arguments)) is not None:  # Gemma 4, LFM2-VL: a padded row of patches
        painted[tile, (places[tile] == torch.tensor([col, row])).all(-1)] = value
    elif (sizes := sizes_of(arguments)) is not None:  # MiniCPM-V: one picture
        patch = row * int(sizes[0, 1]) + col
        painted[..., patch * PATCH : (patch + 1) * PATCH] = value
    elif painted.dim() == 2:  # Qwen: a row for each patch, frame by frame, in 2x2 squares
        _, rows, cols = grid  # type: ignore[misc]
        square = (tile * rows // 2 + row // 2) * (cols // 2) + col // 2
        painted[4 * square + 2 * (row % 2) + col % 2] = value
    elif painted.dim() == 3:  # Molmo 2: a row for each patch of square crops
        painted[tile, row * round(painted.shape[1] ** 0.5) + col] = value
    elif grid is not None:  # PaddleOCR-VL, Kimi: a little picture for each patch, in all frames of a chunk
        painted.view(*grid, *painted.shape[1:])[:, row, col] = value
    else:
        tiles = painted.view(-1, *painted.shape[-3:])
        tiles[tile, :, row * PATCH : (row + 1) * PATCH, col * PATCH : (col + 1) * PATCH] = value
    return {**arguments, name: painted}
