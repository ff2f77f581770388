"""LLaVA-NeXT-Video: LLaVA-NeXT with videos, 2 x 2 patches of a frame pooled into a slot before the projector."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from vlmprune.core.view import Grid
from vlmprune.models.base import Slots, raster
from vlmprune.models.llava_next import LlavaNextAdapter
from vlmprune.models.patches import block_mean


class LlavaNextVideoAdapter(LlavaNextAdapter):
    families = ("llava_next_video",)
    feature_functions = {"image": "get_image_features", "video": "get_video_features"}

    @classmethod
    def knows(cls, config: Any) -> bool:
        """Not patches pooled by their largest values or by learned weights, or some that fill no square."""
        vision = config.vision_config
        squares = vision.image_size // vision.patch_size % config.spatial_pool_stride == 0
        return super().knows(config) and squares and config.spatial_pool_mode == "average"

    def features(self, modality: str, call: dict[str, Any], pooled: Any) -> list[Tensor]:
        """Older versions of transformers hand over a video frame by frame."""
        return [piece.flatten(0, -2) for piece in pooled]

    def slots(self, modality: str, call: dict[str, Any], counts: Sequence[int] | None = None) -> list[Slots]:
        if modality == "image":
            return super().slots(modality, call, counts)
        patches, stride = self.patch_grid(modality, call), self.config.spatial_pool_stride
        videos, frames = call["pixel_values_videos"].shape[:2]
        return [raster(Grid(patches.rows // stride, patches.cols // stride, frames))] * videos

    def laid_out(self, modality: str, call: dict[str, Any], values: Tensor) -> list[Tensor]:
        if modality == "image":
            return super().laid_out(modality, call, values)
        pooled = block_mean(values, self.patch_grid(modality, call), self.config.spatial_pool_stride)
        return [video.flatten(0, 1) for video in pooled.split(self.pieces(modality, call))]
