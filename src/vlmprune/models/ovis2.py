"""Ovis 2: the whole image, then its tiles, a marker between them; each slot a mix of words for 2 x 2 patches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from vlmprune.models.base import CLIP
from vlmprune.models.internvl import runs
from vlmprune.models.patches import PatchAdapter


class Ovis2Adapter(PatchAdapter):
    families = ("ovis2",)
    normalisation = CLIP
    whole_tile = 0

    @classmethod
    def knows(cls, config: Any) -> bool:
        """Not a tower whose patches are filled up with zeros to make squares, or one that draws words by chance."""
        vision = config.vision_config
        squares = vision.image_size // vision.patch_size % vision.hidden_stride == 0
        return squares and vision.tokenize_function != "gumbel_argmax"

    def encoder_layers(self, modality: str = "image") -> Sequence[nn.Module]:
        return self.inner.vision_tower.transformer.encoder.layers

    @property
    def patches_a_side(self) -> int:
        return self.config.vision_config.hidden_stride

    def images(self, ids: Tensor | None, columns: Sequence[Tensor]) -> list[int]:
        """Between tiles stands one marker; between images, the end of one and the beginning of another."""
        return runs(columns, between=1)
