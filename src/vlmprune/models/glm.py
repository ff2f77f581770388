"""GLM-4.1V to 4.6V and GLM-OCR: Qwen2-VL's layout with another merger; frames stand apart and have the image's id."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vlmprune.models.mixing import refuse_images_beside_videos
from vlmprune.models.qwen2_vl import Qwen2VLAdapter


class GlmAdapter(Qwen2VLAdapter):
    """GLM-V: images of any size, a 2x2 merger; a video's frames have the image's id, with the time after each."""

    families = ("glm4v", "glm46v", "glm4v_moe", "glm_ocr")

    @property
    def placeholder_ids(self) -> dict[str, int]:
        """One id for both: the token types alone tell them apart."""
        return dict.fromkeys(self.feature_functions, self.config.image_token_id)

    def blocks(self, call: Mapping[str, Any]) -> None:
        refuse_images_beside_videos(self, call)
