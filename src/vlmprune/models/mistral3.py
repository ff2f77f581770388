"""Mistral 3: Pixtral's tower, images of any size, k x k patches a slot; each row of slots ends with a text token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vlmprune.core.view import Grid
from vlmprune.models.base import CLIP
from vlmprune.models.patches import layer_of_hidden_state
from vlmprune.models.raster import RasterAdapter


class Mistral3Adapter(RasterAdapter):
    families: ClassVar[tuple[str, ...]] = ("mistral3",)
    normalisation = CLIP

    @classmethod
    def knows(cls, config: Any) -> bool:
        """Not another tower, or features from several of its layers."""
        return config.vision_config.model_type == "pixtral" and isinstance(config.vision_feature_layer, int)

    def encoder_layers(self, modality: str = "image") -> Sequence[nn.Module]:
        return self.inner.vision_tower.transformer.layers

    @property
    def used_layer(self) -> int:
        return layer_of_hidden_state(self.config.vision_feature_layer, len(self.encoder_layers()))

    @property
    def patches_a_side(self) -> int:
        return self.config.spatial_merge_size

    def patch_grids(self, modality: str, call: dict[str, Any]) -> list[Grid]:
        side = self.config.vision_config.patch_size
        return [Grid(int(height) // side, int(width) // side) for height, width in call["image_sizes"]]

    def pictures(self, modality: str, call: dict[str, Any]) -> list[Tensor]:
        sizes = call["image_sizes"]
        return [p[:, : int(h), : int(w)] for p, (h, w) in zip(call["pixel_values"], sizes, strict=True)]

    def with_pictures(self, modality: str, call: dict[str, Any], pictures: Sequence[Tensor]) -> dict[str, Any]:
        sizes = torch.tensor([picture.shape[1:] for picture in pictures])
        height, width = sizes.amax(0).tolist()
        filled = [nn.functional.pad(p, (0, width - p.shape[2], 0, height - p.shape[1])) for p in pictures]
        if isinstance(call["image_sizes"], Tensor):
            sizes = sizes.to(call["image_sizes"])
        return {**call, "pixel_values": torch.stack(filled), "image_sizes": sizes}
