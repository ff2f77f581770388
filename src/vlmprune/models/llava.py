"""LLaVA-1.5: CLIP (or SigLIP) tower, two-layer MLP projector, one slot per patch, 1-D positions."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from vlmprune.models.base import CLIP, HALF, Normalisation
from vlmprune.models.patches import PatchAdapter, layer_of_hidden_state

CLIP_TOWER, SIGLIP_TOWER = "clip_vision_model", "siglip_vision_model"


class LlavaAdapter(PatchAdapter):
    families = ("llava",)
    tower_rows = True
    interpolates = True

    @classmethod
    def knows(cls, config: Any) -> bool:
        """Not another tower (Pixtral's in Pixtral-12B), features from several of its layers, or a patch left out.

        The strategy "default" leaves out the tower's first token, which is a patch where there is no CLS token.
        """
        tower = config.vision_config.model_type
        whole = tower == CLIP_TOWER or config.vision_feature_select_strategy == "full"
        return tower in (CLIP_TOWER, SIGLIP_TOWER) and isinstance(config.vision_feature_layer, int) and whole

    @property
    def has_cls(self) -> bool:
        return self.config.vision_config.model_type == CLIP_TOWER

    @property
    def normalisation(self) -> Normalisation:  # type: ignore[override]
        return CLIP if self.has_cls else HALF

    @property
    def used_layer(self) -> int:
        return layer_of_hidden_state(self.config.vision_feature_layer, len(self.encoder_layers()))

    def cls_slot(self, modality: str) -> bool:
        return self.has_cls and self.config.vision_feature_select_strategy == "full"

    def project(self, rows: Tensor) -> Tensor:
        # the model's dtype, as a quantised projector has no float weight to tell it
        return self.inner.multi_modal_projector(rows.to(self.inner.dtype))
