"""Llama 4: tiles of 2 x 2 shuffled patches with markers between them, the whole image last; attention in chunks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from vlmprune.models.layout import CHUNKED
from vlmprune.models.patches import PatchAdapter
from vlmprune.models.smolvlm import SmolVLMAdapter


class Llama4Adapter(PatchAdapter):
    """Llama 4: tiles with markers between them, the whole image last; prompt and answer within a chunk of attention."""

    families = ("llama4",)
    features_in = "last_hidden_state"  # which the model projects itself
    cls_last = True
    images = SmolVLMAdapter.images  # tiles up to the one behind the marker of the whole image are one image

    # ------------------------------------------------------------------ the language model

    @property
    def text_model(self) -> Any:
        return self.inner.language_model.model

    def mlp(self, layer: int) -> nn.Module | None:
        return self.decoder_layers[layer].feed_forward  # type: ignore[return-value]

    def turns(self, layer: int) -> bool:
        return bool(self.text_config.no_rope_layers[layer])  # 1 where there is a rotary embedding

    @property
    def longest(self) -> int | None:
        """What fits into a chunk, and is not yet so long that layers without positions sharpen their attention.

        Both are counted in stored tokens: behind a cut prompt, a chunk would end later and attention be less sharp.
        """
        text = self.text_config
        limits = [text.attention_chunk_size] if CHUNKED in text.layer_types else []
        if text.attn_temperature_tuning and not all(text.no_rope_layers):
            # Attention of the token numbered `floor_scale` is the first to change. A pruned cache, asked in a layer how
            # many tokens it holds, counts the new one, which it holds in the first layer already.
            limits.append(text.floor_scale - 2)
        return min(limits, default=None)

    # ------------------------------------------------------------------ the vision encoder

    def encoder_layers(self, modality: str = "image") -> Sequence[nn.Module]:
        return self.inner.vision_model.model.layers

    @property
    def has_cls(self) -> bool:
        return True

    # ------------------------------------------------------------------ from patches to slots

    @property
    def patches_a_side(self) -> int:
        return round(1 / self.config.vision_config.pixel_shuffle_ratio)

    def features(self, modality: str, call: dict[str, Any], pooled: Any) -> list[Tensor]:
        return list(self.inner.multi_modal_projector(pooled))
