"""LLaVA-NeXT: a base tile with the whole image, then tiles joined without padding, a newline slot after each row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape, image_size_to_num_patches

from vlmprune.core.view import Grid, Whole
from vlmprune.models.base import Slots
from vlmprune.models.llava import LlavaAdapter


class LlavaNextAdapter(LlavaAdapter):
    families = ("llava_next",)
    interpolates = False  # the model puts tiles together by the size in its config

    def tiles(self, call: dict[str, Any]) -> list[int]:
        """Tiles of each image, the base included."""
        config = self.config
        return [
            image_size_to_num_patches(size, config.image_grid_pinpoints, config.vision_config.image_size)
            for size in call["image_sizes"]
        ]

    def pack(self, values: Tensor, call: dict[str, Any]) -> list[Tensor]:
        """Values of the tower's patches [tiles, N, C] laid out by the model's own code, NaN for image_newline."""
        packed, _ = self.inner.pack_image_features(
            values.split(self.tiles(call)),
            call["image_sizes"],
            vision_feature_select_strategy=self.config.vision_feature_select_strategy,
            image_newline=torch.full(values.shape[-1:], float("nan"), device=values.device),
        )
        return packed

    def slots(self, modality: str, call: dict[str, Any], counts: Sequence[int] | None = None) -> list[Slots]:
        side = self.config.vision_config.image_size // self.config.vision_config.patch_size
        found, coordinates, shapes = [], [], []
        for size, tiles in zip(call["image_sizes"], self.tiles(call), strict=True):
            shape = get_anyres_image_grid_shape(
                size, self.config.image_grid_pinpoints, self.config.vision_config.image_size
            )
            rows, cols = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
            corners = [(0, 0), *((side * r, side * c) for r in range(shape[0]) for c in range(shape[1]))][:tiles]
            coordinates += [torch.stack([rows + top, cols + left], -1).flatten(0, 1) for top, left in corners]
            shapes.append((tiles, shape[1]))
        for places, (tiles, across) in zip(self.pack(torch.stack(coordinates).float(), call), shapes, strict=True):
            # Where the model shrinks the canvas, a slot shows the patch nearest to its centre.
            row, col = places.nan_to_num().round().long().unbind(-1)
            tile = 1 + (row // side) * across + col // side
            tile[: side * side] = 0
            cells = (tile * side + row % side) * side + col % side
            cells = cells.masked_fill(places[:, 0].isnan(), -1)
            found.append(Slots(Grid(side, side, tiles), cells, _wholes(cells, side, tiles)))
        return found

    def pieces(self, modality: str, call: dict[str, Any]) -> list[int]:
        """Tiles, or the frames of a video, which the families that have videos take one by one."""
        if modality == "image":
            return self.tiles(call)
        videos, frames = call["pixel_values_videos"].shape[:2]
        return [frames] * videos

    def pictures(self, modality: str, call: dict[str, Any]) -> Tensor:
        """Without the tiles that only fill the batch."""
        if modality == "video":
            return call["pixel_values_videos"].flatten(0, 1)
        pixels = call["pixel_values"]
        if pixels.ndim == 4:
            return pixels
        return torch.cat([image[:tiles] for image, tiles in zip(pixels, self.tiles(call), strict=True)])

    def laid_out(self, modality: str, call: dict[str, Any], values: Tensor) -> list[Tensor]:
        packed = self.pack(values.reshape(*values.shape[:2], -1), call)
        return [piece.reshape(-1, *values.shape[2:]) for piece in packed]


def _wholes(cells: Tensor, side: int, tiles: int) -> tuple[Whole, ...]:
    """The base tile shows the whole picture, and so do the others together, once unpadded."""
    slot = torch.arange(len(cells))
    if tiles == 1:
        return (Whole("image", Grid(side, side), cells),)
    base = torch.where(slot < side * side, slot, -1)
    width = int((cells < 0).nonzero()[0]) - side * side  # up to the first image_newline
    rows = (len(cells) - side * side) // (width + 1)
    place = slot - side * side
    canvas = torch.where((cells >= 0) & (place >= 0), place // (width + 1) * width + place % (width + 1), -1)
    return Whole("base tile", Grid(side, side), base), Whole("tiles", Grid(rows, width), canvas)
