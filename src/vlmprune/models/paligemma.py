"""PaliGemma: SigLIP tower, linear projector, image first; two-way attention within the whole prompt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vlmprune.models.patches import PatchAdapter


class PaliGemmaAdapter(PatchAdapter):
    families = ("paligemma",)
    tower_rows = True
    interpolates = True
    later_token_type = 1  # 0 is the prefix
    images_behind_caches = False  # they see themselves in one direction or in both, depending on who encoded them

    def window_cuts_blocks(self, cache: Any) -> bool:
        return False  # PaliGemma 2: the prefix sees all of itself in every layer

    def blocks(self, call: Mapping[str, Any]) -> Tensor | None:
        types, cache = call.get("token_type_ids"), call.get("cache")
        first = cache is None or not cache.is_initialized or call.get("pixel_values") is not None
        return torch.where(types == 0, 0, -1) if types is not None and first else None

    def project(self, rows: Tensor) -> Tensor:
        # Between the last layer and the projector stands the tower's last norm.
        # The model's dtype, as a quantised projector has no float weight to tell it.
        return self.inner.multi_modal_projector(self.inner.vision_tower.post_layernorm(rows.to(self.inner.dtype)))
