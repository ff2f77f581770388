"""Video-LLaVA: LLaVA with one tower for images and one for videos; the CLS token of a frame has a slot of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from vlmprune.models.llava import LlavaAdapter


class VideoLlavaAdapter(LlavaAdapter):
    families = ("video_llava",)
    feature_functions = {"image": "get_image_features", "video": "get_video_features"}
    renamed = {"pixel_values_images": "pixel_values"}

    def encoder_layers(self, modality: str = "image") -> Sequence[nn.Module]:
        tower = self.inner.image_tower if modality == "image" else self.inner.video_tower
        return tower.encoder.layers

    def cls_slot(self, modality: str) -> bool:
        return modality == "video" or super().cls_slot(modality)

    def pieces(self, modality: str, call: dict[str, Any]) -> list[int]:
        if modality == "image":
            return super().pieces(modality, call)
        videos, frames = call["pixel_values_videos"].shape[:2]
        return [frames] * videos

    def features(self, modality: str, call: dict[str, Any], pooled: Tensor) -> list[Tensor]:
        frames = self.pieces(modality, call)[0]
        return list(pooled.unflatten(0, (-1, frames)).flatten(1, 2))
