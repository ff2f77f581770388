"""Families whose tower takes pictures of any size, each by itself: rows x cols patches in raster order."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vlmprune.core.view import Grid, TowerRows
from vlmprune.models.base import Adapter, Slots, raster, split_rows
from vlmprune.models.patches import block_mean


class RasterAdapter(Adapter):
    """A slot for each `patches_a_side` x `patches_a_side` patches of a picture, in raster order. A piece is a picture.

    A subclass says where the pictures are in a call (`pictures`), and how others take their place (`with_pictures`).
    """

    @property
    def patches_a_side(self) -> int:
        raise NotImplementedError

    def pictures(self, modality: str, call: dict[str, Any]) -> list[Tensor]:
        """[3, height, width] of each picture of a call, as the tower sees it."""
        raise NotImplementedError

    def with_pictures(self, modality: str, call: dict[str, Any], pictures: Sequence[Tensor]) -> dict[str, Any]:
        """The arguments of the same call with other pictures, whose sides are whole slots."""
        raise NotImplementedError

    def patch_grids(self, modality: str, call: dict[str, Any]) -> list[Grid]:
        """Patches of each picture."""
        raise NotImplementedError

    def slots(self, modality: str, call: dict[str, Any], counts: Sequence[int] | None = None) -> list[Slots]:
        side = self.patches_a_side
        return [
            raster(Grid(patches.rows // side, patches.cols // side)) for patches in self.patch_grids(modality, call)
        ]

    def rows(
        self, modality: str, call: dict[str, Any], chunks: Sequence[Tensor], counts: Sequence[int]
    ) -> list[TowerRows]:
        """Where the tower merges squares of patches on its way, a row is such a square in the layers behind."""
        grids, values = self.patch_grids(modality, call), torch.cat([chunk.flatten(0, 1) for chunk in chunks])
        merged = math.isqrt(sum(patches.size for patches in grids) // len(values))
        squares = [Grid(patches.rows // merged, patches.cols // merged) for patches in grids]
        side = self.patches_a_side // merged
        pictures = split_rows(values, [square.size for square in squares])
        return [
            TowerRows(block_mean(picture[None], square, side)[0], None)
            for picture, square in zip(pictures, squares, strict=True)
        ]

    def pixel_rows(self, modality: str, call: dict[str, Any], normalized: bool) -> list[Tensor]:
        found, side = [], self._slot_side
        for picture in self.pictures(modality, call):
            pixels = picture.float() if normalized else self.raw(picture.float(), axis=-3)
            found.append(nn.functional.unfold(pixels[None], side, stride=side)[0].T)
        return found

    @property
    def _slot_side(self) -> int:
        """Pixels."""
        return self.patches_a_side * self.config.vision_config.patch_size

    @property
    def slot_pixels(self) -> int | None:
        return self._slot_side

    @property
    def resizes(self) -> bool:
        return True

    def resize(self, modality: str, call: dict[str, Any], grids: Sequence[Grid]) -> dict[str, Any]:
        made = []
        for picture, grid in zip(self.pictures(modality, call), grids, strict=True):
            size = (grid.rows * self._slot_side, grid.cols * self._slot_side)
            resized = nn.functional.interpolate(
                picture[None].float(), size=size, mode="bicubic", align_corners=False, antialias=True
            )
            made.append(resized[0].to(picture.dtype))
        return self.with_pictures(modality, call, made)
