"""Kimi K2.5: pictures of any size, 2 x 2 patches a slot; a video is chunks of frames, each pooled over its frames."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vlmprune.core.view import Grid, TowerRows
from vlmprune.models.base import Adapter, Slots, raster, split_rows


class KimiK25Adapter(Adapter):
    """Kimi K2.5: 2 x 2 patches a slot; each chunk of a video is an image, whose slots show all of its frames."""

    families = ("kimi_k25",)
    feature_functions = {"image": "get_image_features", "video": "get_video_features"}

    def encoder_layers(self, modality: str = "image") -> Sequence[nn.Module]:
        return self.inner.vision_tower.layers

    @property
    def merge(self) -> tuple[int, int]:
        """Rows and columns of patches behind a slot."""
        rows, cols = self.config.vision_config.merge_kernel_size
        return rows, cols

    def slots(self, modality: str, call: dict[str, Any], counts: Sequence[int] | None = None) -> list[Slots]:
        height, width = self.merge
        return [raster(Grid(rows // height, cols // width)) for _, rows, cols in self._thw(modality, call)]

    def rows(
        self, modality: str, call: dict[str, Any], chunks: Sequence[Tensor], counts: Sequence[int]
    ) -> list[TowerRows]:
        shapes = self._thw(modality, call)
        values = torch.cat([chunk.flatten(0, 1) for chunk in chunks])
        pieces = split_rows(values, [math.prod(shape) for shape in shapes])
        found = [self._squares(piece, shape).mean((1, 2)) for piece, shape in zip(pieces, shapes, strict=True)]
        return [TowerRows(rows, None) for rows in found]

    def pixel_rows(self, modality: str, call: dict[str, Any], normalized: bool) -> list[Tensor]:
        pixels, shapes = call[self.pixels[modality]].float(), self._thw(modality, call)
        if not normalized:
            pixels = self.raw(pixels, axis=-3)
        pieces = split_rows(pixels, [math.prod(shape) for shape in shapes])
        return [self._squares(piece, shape).flatten(1) for piece, shape in zip(pieces, shapes, strict=True)]

    @property
    def slot_pixels(self) -> int | None:
        return self.merge[0] * self.config.vision_config.patch_size

    @property
    def resizes(self) -> bool:
        return True

    def resize(self, modality: str, call: dict[str, Any], grids: Sequence[Grid]) -> dict[str, Any]:
        name, shapes, patch = self.pixels[modality], self._thw(modality, call), call[self.pixels[modality]].shape[-1]
        pieces = split_rows(call[name], [math.prod(shape) for shape in shapes])
        made, sizes = [], []
        for piece, (frames, rows, cols), grid in zip(pieces, shapes, grids, strict=True):
            size = (frames, grid.rows * self.merge[0], grid.cols * self.merge[1])
            pictures = piece.view(frames, rows, cols, -1, patch, patch).permute(0, 3, 1, 4, 2, 5)
            small = nn.functional.interpolate(
                pictures.flatten(4).flatten(2, 3).float(), size=(size[1] * patch, size[2] * patch), mode="bicubic",
                align_corners=False, antialias=True,
            )  # fmt: skip
            small = small.to(piece.dtype).view(frames, -1, size[1], patch, size[2], patch).permute(0, 2, 4, 1, 3, 5)
            made.append(small.flatten(0, 2))
            sizes.append(size)
        return {**call, name: torch.cat(made), f"{modality}_grid_thw": call[f"{modality}_grid_thw"].new_tensor(sizes)}

    def _thw(self, modality: str, call: dict[str, Any]) -> list[list[int]]:
        """Frames, rows and columns of patches of each picture or chunk."""
        return call[f"{modality}_grid_thw"].tolist()  # type: ignore[no-any-return]

    def _squares(self, values: Tensor, shape: Sequence[int]) -> Tensor:
        """Values of patches [frames * rows * cols, ...] as [slots, frames, patches of a slot, ...]."""
        (frames, rows, cols), (height, width) = shape, self.merge
        blocks = values.unflatten(0, (frames, rows // height, height, cols // width, width))
        return blocks.movedim((1, 3), (0, 1)).flatten(0, 1).flatten(2, 3)
