"""LLaVA-1.5: CLIP (or SigLIP) tower, two-layer MLP projector, one slot a patch, 1-D positions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vlmprune.core.errors import UserError
from vlmprune.core.view import Grid, TowerRows
from vlmprune.models.base import Adapter

TOWERS = ("clip_vision_model", "siglip_vision_model")


class LlavaAdapter(Adapter):
    family = "llava"

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        tower = self.config.vision_config.model_type
        if tower not in TOWERS:
            raise UserError(f"This LLaVA has a {tower!r} vision tower; vlmprune knows {' and '.join(TOWERS)}.")
        if not isinstance(self.config.vision_feature_layer, int):
            raise UserError(
                "This LLaVA concatenates several encoder layers (vision_feature_layer is a list): not supported."
            )

    @property
    def encoder_layers(self) -> Sequence[nn.Module]:
        return self.inner.vision_tower.encoder.layers

    @property
    def has_cls(self) -> bool:
        return self.config.vision_config.model_type == "clip_vision_model"

    @property
    def used_layer(self) -> int:
        # hidden_states[0] are the embeddings, so hidden_states[i + 1] is what layer i returns.
        depth, layer = len(self.encoder_layers), self.config.vision_feature_layer
        return (layer + depth + 1 if layer < 0 else layer) - 1

    @property
    def _cls_is_a_slot(self) -> bool:
        return self.has_cls and self.config.vision_feature_select_strategy == "full"

    def grids(self, modality: str, call: dict[str, Any]) -> list[Grid | None]:
        count = len(call["pixel_values"])
        if self._cls_is_a_slot:
            return [None] * count
        patch = self.config.vision_config.patch_size
        rows, cols = (side // patch for side in call["pixel_values"].shape[-2:])
        return [Grid(rows, cols)] * count

    def rows(self, modality: str, call: dict[str, Any], chunks: Sequence[Tensor]) -> list[TowerRows]:
        values = torch.cat(list(chunks))
        if not self.has_cls or self._cls_is_a_slot:
            return [TowerRows(image, None) for image in values]
        return [TowerRows(image[1:], image[0]) for image in values]

    def project(self, rows: Tensor) -> Tensor:
        projector = self.inner.multi_modal_projector
        return projector(rows.to(projector.linear_1.weight.dtype))

    def resize(self, modality: str, call: dict[str, Any], grids: Sequence[Grid]) -> dict[str, Any]:
        patch = self.config.vision_config.patch_size
        size = (grids[0].rows * patch, grids[0].cols * patch)  # one size a batch, as the processor makes them
        pixels = nn.functional.interpolate(
            call["pixel_values"].float(), size=size, mode="bicubic", align_corners=False, antialias=True
        )
        return {**call, "pixel_values": pixels.to(call["pixel_values"].dtype), "interpolate_pos_encoding": True}
