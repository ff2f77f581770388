"""MiniCPM-V: pictures side by side in one row of patches, merged 2 x 2 inside the encoder and again after it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vlmprune.core.view import Grid, TowerRows
from vlmprune.models.base import Adapter, Slots, raster
from vlmprune.models.patches import block_mean, in_pieces

SIZES = {"image": "target_sizes", "video": "target_sizes_videos"}  # [pieces, 2] rows and columns of patches


class MiniCPMVAdapter(Adapter):
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

    def slots(self, modality: str, call: dict[str, Any], counts: Sequence[int] | None = None) -> list[Slots]:
        side = self.patches_a_side
        return [raster(Grid(rows // side, cols // side)) for rows, cols in call[SIZES[modality]].tolist()]

    def rows(
        self, modality: str, call: dict[str, Any], chunks: Sequence[Tensor], counts: Sequence[int]
    ) -> list[TowerRows]:
        """In later layers a token is 2 x 2 patches."""
        sizes = call[SIZES[modality]].tolist()
        pieces = in_pieces(chunks, [rows * cols for rows, cols in sizes])
        shrunk = round((math.prod(sizes[0]) / len(pieces[0])) ** 0.5)
        side = self.patches_a_side // shrunk
        grids = [Grid(rows // shrunk, cols // shrunk) for rows, cols in sizes]
        return [
            TowerRows(block_mean(piece[None], grid, side)[0], None) for piece, grid in zip(pieces, grids, strict=True)
        ]

    def pixel_rows(self, modality: str, call: dict[str, Any], normalized: bool) -> list[Tensor]:
        square = self.patches_a_side * self.config.vision_config.patch_size
        found = []
        for picture in self._pictures(modality, call):
            shown = picture.float() if normalized else self.raw(picture.float(), axis=-3)
            found.append(nn.functional.unfold(shown[None], square, stride=square)[0].T)
        return found

    @property
    def slot_pixels(self) -> int | None:
        return self.patches_a_side * self.config.vision_config.patch_size

    @property
    def resizes(self) -> bool:
        return True

    def resize(self, modality: str, call: dict[str, Any], grids: Sequence[Grid]) -> dict[str, Any]:
        name, side = self.pixels[modality], self.patches_a_side
        sizes, patch = call[SIZES[modality]], call[name].shape[-2]
        made = []
        for picture, grid in zip(self._pictures(modality, call), grids, strict=True):
            size = (grid.rows * side * patch, grid.cols * side * patch)
            small = nn.functional.interpolate(
                picture[None].float(), size=size, mode="bicubic", align_corners=False, antialias=True
            )
            made.append(small[0].unflatten(1, (-1, patch)).transpose(1, 2).flatten(2).to(picture.dtype))
        smaller = [(grid.rows * side, grid.cols * side) for grid in grids]
        # a row of patches after the other: [3, patch, rows * cols * patch]
        return {**call, name: torch.cat(made, dim=-1)[None], SIZES[modality]: sizes.new_tensor(smaller)}

    def _pictures(self, modality: str, call: dict[str, Any]) -> list[Tensor]:
        """[3, height, width] of each piece, put together from its patches."""
        pixels, sizes = call[self.pixels[modality]][0], call[SIZES[modality]].tolist()
        patch = pixels.shape[-2]
        pieces = pixels.split([rows * cols * patch for rows, cols in sizes], dim=-1)
        return [
            piece.unflatten(-1, (rows, cols * patch)).transpose(1, 2).flatten(1, 2)
            for piece, (rows, cols) in zip(pieces, sizes, strict=True)
        ]


class MiniCPMV47Adapter(MiniCPMVAdapter):
    """MiniCPM-V 4.7: MiniCPM-V 4.6 with M-RoPE, by which the slices of a picture lie on one canvas with the whole."""

    families = ("minicpmv4_7",)
