"""Gemma3: SigLIP tower, average pooling to 256 slots per crop, sliding windows; two-way attention within an image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers.models.gemma3.modeling_gemma3 import get_block_sequence_ids_for_mask

from vlmprune.models.patches import PatchAdapter


class Gemma3Adapter(PatchAdapter):
    families = ("gemma3",)

    @property
    def patches_a_side(self) -> int:
        return self.inner.multi_modal_projector.kernel_size

    def blocks(self, call: Mapping[str, Any]) -> Tensor | None:
        types = call.get("token_type_ids")
        return None if types is None else get_block_sequence_ids_for_mask(types)
