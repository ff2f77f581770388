"""PaddleOCR-VL: images of any size, patches in raster order, 2 x 2 of which the projector makes a slot; M-RoPE."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vlmprune.core.view import Grid
from vlmprune.models.base import CLIP
from vlmprune.models.raster import RasterAdapter

GRIDS = "image_grid_thw"


class PaddleOcrAdapter(RasterAdapter):
    families = ("paddleocr_vl",)
    normalisation = CLIP

    def encoder_layers(self, modality: str = "image") -> Sequence[nn.Module]:
        return self.inner.visual.vision_model.encoder.layers

    @property
    def patches_a_side(self) -> int:
        return self.config.vision_config.spatial_merge_size

    def patch_grids(self, modality: str, call: dict[str, Any]) -> list[Grid]:
        return [Grid(frames * rows, cols) for frames, rows, cols in call[GRIDS].tolist()]

    def pictures(self, modality: str, call: dict[str, Any]) -> list[Tensor]:
        pixels = call[self.pixels[modality]]  # a row is a patch [3, side, side]
        grids = self.patch_grids(modality, call)
        parts = pixels.split([patches.size for patches in grids])
        return [
            part.unflatten(0, (patches.rows, patches.cols)).permute(2, 0, 3, 1, 4).flatten(1, 2).flatten(2, 3)
            for part, patches in zip(parts, grids, strict=True)
        ]

    def with_pictures(self, modality: str, call: dict[str, Any], pictures: Sequence[Tensor]) -> dict[str, Any]:
        side = self.config.vision_config.patch_size
        cut = [picture.unflatten(2, (-1, side)).unflatten(1, (-1, side)).permute(1, 3, 0, 2, 4) for picture in pictures]
        shapes = [(1, *patches.shape[:2]) for patches in cut]
        flat = torch.cat([patches.flatten(0, 1) for patches in cut])
        return {**call, self.pixels[modality]: flat, GRIDS: call[GRIDS].new_tensor(shapes)}
