"""Aya Vision: SigLIP tower, tiles of 2 x 2 shuffled patches with markers before them, the whole image last."""

from typing import Any

from vlmprune.models.patches import PatchAdapter
from vlmprune.models.smolvlm import SmolVLMAdapter


class AyaVisionAdapter(PatchAdapter):
    families = ("aya_vision",)
    images = SmolVLMAdapter.images  # tiles up to the one behind the marker of the whole image are one image

    @classmethod
    def knows(cls, config: Any) -> bool:
        """Not another tower, another layer of it than the last, or a patch left out."""
        usual = config.vision_feature_layer == -1 and config.vision_feature_select_strategy == "full"
        return usual and config.vision_config.model_type == "siglip_vision_model"

    @property
    def patches_a_side(self) -> int:
        return self.config.downsample_factor
