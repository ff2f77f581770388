"""InternVL: tiles (the thumbnail last), each slot made of 2 x 2 patches; no text between the tiles of an image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from vlmprune.models.base import IMAGENET
from vlmprune.models.patches import PatchAdapter, layer_of_hidden_state


class InternVLAdapter(PatchAdapter):
    families = ("internvl",)
    normalisation = IMAGENET

    @classmethod
    def knows(cls, config: Any) -> bool:
        """Not features from several layers of the tower."""
        return isinstance(config.vision_feature_layer, int)

    @property
    def patches_a_side(self) -> int:
        return round(1 / self.config.downsample_ratio)

    @property
    def has_cls(self) -> bool:
        return True

    @property
    def used_layer(self) -> int:
        return layer_of_hidden_state(self.config.vision_feature_layer, len(self.encoder_layers()))

    def encoder_layers(self, modality: str = "image") -> Sequence[nn.Module]:
        return self.inner.vision_tower.encoder.layer

    def images(self, ids: Tensor | None, columns: Sequence[Tensor]) -> list[int]:
        """Tiles that touch belong to one image: the processor writes <img> and </img> around it."""
        return runs(columns)


def runs(columns: Sequence[Tensor], between: int = 0) -> list[int]:
    """How many successive pieces follow each other with so many tokens between them."""
    counts: list[int] = []
    for number, piece in enumerate(columns):
        touches = number > 0 and int(piece[0]) == int(columns[number - 1][-1]) + 1 + between
        if touches:
            counts[-1] += 1
        else:
            counts.append(1)
    return counts
