"""MiniCPM-V: pictures side by side in one row of patches, merged 2 x 2 inside the encoder and again after it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vlmprune.core.view import Grid
from vlmprune.models.raster import RasterAdapter

SIZES = {"image": "target_sizes", "video": "target_sizes_videos"}  # [pieces, 2] rows and columns of patches


class MiniCPMVAdapter(RasterAdapter):
    """MiniCPM-V 4.6: the whole picture and each of its slices are an image, and so is each frame of a video."""

    families: ClassVar[tuple[str, ...]] = ("minicpmv4_6",)
    feature_functions = {"image": "get_image_features", "video": "get_video_features"}
    side_by_side: ClassVar[dict[str, int]] = {"pixel_values": -1, "pixel_values_videos": -1}

    @classmethod
    def knows(cls, config: Any) -> bool:
        """Not other sizes of the squares that are merged, or several mergers one after another."""
        squares = {tuple(config.merge_kernel_size), tuple(config.vision_config.window_kernel_size)}
        return squares == {(2, 2)} and config.merger_times == 1 and config.insert_layer_id >= 0

    @property
    def patches_a_side(self) -> int:
        return 2 if self.config.downsample_mode == "4x" else 4

    def encoder_layers(self, modality: str = "image") -> Sequence[nn.Module]:
        return self.inner.vision_tower.encoder.layers

    def patch_grids(self, modality: str, call: dict[str, Any]) -> list[Grid]:
        return [Grid(rows, cols) for rows, cols in call[SIZES[modality]].tolist()]

    def pictures(self, modality: str, call: dict[str, Any]) -> list[Tensor]:
        pixels, grids = call[self.pixels[modality]][0], self.patch_grids(modality, call)
        patch = pixels.shape[-2]
        pieces = pixels.split([patches.size * patch for patches in grids], dim=-1)
        return [
            piece.unflatten(-1, (patches.rows, patches.cols * patch)).transpose(1, 2).flatten(1, 2)
            for piece, patches in zip(pieces, grids, strict=True)
        ]

    def with_pictures(self, modality: str, call: dict[str, Any], pictures: Sequence[Tensor]) -> dict[str, Any]:
        patch = call[self.pixels[modality]].shape[-2]
        sizes = [(picture.shape[1] // patch, picture.shape[2] // patch) for picture in pictures]
        # a row of patches after the other: [3, patch, rows * cols * patch]
        rows = [picture.unflatten(1, (-1, patch)).transpose(1, 2).flatten(2) for picture in pictures]
        found = {self.pixels[modality]: torch.cat(rows, dim=-1)[None]}
        return {**call, **found, SIZES[modality]: call[SIZES[modality]].new_tensor(sizes)}


class MiniCPMV47Adapter(MiniCPMVAdapter):
    """MiniCPM-V 4.7: MiniCPM-V 4.6 with M-RoPE, by which the slices of a picture lie on one canvas with the whole."""

    families = ("minicpmv4_7",)
