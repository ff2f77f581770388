"""LLaVA-1.5, and Pixtral-12B, which is one: two-layer MLP projector, one slot per patch, 1-D positions."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from vlmprune.core.errors import UserError
from vlmprune.core.view import Grid
from vlmprune.models.base import CLIP, HALF, Adapter, Normalisation
from vlmprune.models.mistral3 import Mistral3Adapter
from vlmprune.models.patches import PatchAdapter, layer_of_hidden_state

CLIP_TOWER, SIGLIP_TOWER = "clip_vision_model", "siglip_vision_model"


class LlavaAdapter(PatchAdapter):
    families = ("llava",)
    tower_rows = True
    interpolates = True

    @classmethod
    def variant(cls, config: Any) -> type[Adapter]:
        return PixtralAdapter if PixtralAdapter.knows(config) else cls

    @classmethod
    def knows(cls, config: Any) -> bool:
        """Not another tower, features from several of its layers, or a patch left out.

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
        return _projected(self.inner, rows)


class PixtralAdapter(Mistral3Adapter):
    """Pixtral-12B: Pixtral's tower, images of any size, a slot per patch; each row of slots ends with a text token."""

    families: ClassVar[tuple[str, ...]] = ()  # LLaVA's, for which `LlavaAdapter.variant` chooses it
    tower_rows = True
    patches_a_side = 1

    @classmethod
    def knows(cls, config: Any) -> bool:
        """LLaVA alone, not LLaVA-NeXT or another one with this tower; nor one where a patch is left out."""
        whole = config.model_type == "llava" and config.vision_feature_select_strategy == "full"
        return whole and super().knows(config)

    def patch_grids(self, modality: str, call: dict[str, Any]) -> list[Grid]:
        if call.get("image_sizes") is None:
            raise UserError("Without image_sizes, Pixtral's features do not say where an image ends: pass them, too.")
        return super().patch_grids(modality, call)

    def project(self, rows: Tensor) -> Tensor:
        return _projected(self.inner, rows)


def _projected(inner: Any, rows: Tensor) -> Tensor:
    # the model's dtype, as a quantised projector has no float weight to tell it
    return inner.multi_modal_projector(rows.to(inner.dtype))  # type: ignore[no-any-return]
