"""Cohere 2 Vision: SigLIP tower, tiles of 2 x 2 shuffled patches, a line break behind each, the whole image last."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from vlmprune.models.internvl import runs
from vlmprune.models.patches import PatchAdapter


class Cohere2VisionAdapter(PatchAdapter):
    families = ("cohere2_vision",)

    @classmethod
    def knows(cls, config: Any) -> bool:
        return config.vision_config.model_type == "siglip_vision_model"

    @property
    def patches_a_side(self) -> int:
        return self.config.downsample_factor

    def images(self, ids: Tensor | None, columns: Sequence[Tensor]) -> list[int]:
        """Between tiles stands a line break; between images, the end of one and the beginning of another, too."""
        return runs(columns, between=1)
