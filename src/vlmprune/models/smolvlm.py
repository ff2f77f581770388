"""SmolVLM and Idefics3: tiles with markers between them, the whole image last; each slot is made of several patches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vlmprune.models.patches import PatchAdapter


class SmolVLMAdapter(PatchAdapter):
    """SmolVLM: tiles with markers between them; a video becomes one image per frame, each with a budget of its own."""

    families = ("smolvlm",)

    @property
    def text_model(self) -> Any:
        return self.inner.text_model

    @property
    def patches_a_side(self) -> int:
        return self.config.scale_factor

    def encoder_layers(self, modality: str = "image") -> Sequence[nn.Module]:
        return self.inner.vision_model.encoder.layers

    def pieces(self, modality: str, call: dict[str, Any]) -> list[int]:
        return [1] * len(self.pictures(modality, call))

    def pictures(self, modality: str, call: dict[str, Any]) -> Tensor:
        """Tiles of zeros only fill the batch; the model leaves them out."""
        tiles = call["pixel_values"].flatten(0, 1)
        real = (tiles != 0).flatten(1).any(1)
        return tiles[real] if bool(real.any()) else tiles[:1]

    def features(self, modality: str, call: dict[str, Any], pooled: Any) -> list[Tensor]:
        count = len(self.slots(modality, call)[0].cells)
        return list(torch.cat(list(pooled)).split(count))

    def images(self, ids: Tensor | None, columns: Sequence[Tensor]) -> list[int]:
        """An image ends with the tile that shows all of it, which stands behind <global-img>.

        The last tile of a row is such a one, so the token before it tells that marker's id on any tokenizer.
        """
        if ids is None:
            return [1] * len(columns)
        markers = [int(ids[int(piece[0]) - 1]) for piece in columns]
        ends = [number + 1 for number, marker in enumerate(markers) if marker == markers[-1]]
        return [end - start for start, end in zip([0, *ends], ends, strict=False)]


class Idefics3Adapter(SmolVLMAdapter):
    families = ("idefics3",)
