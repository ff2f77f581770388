"""Families that give the slots of images and of videos one id, so that one call cannot hold both."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vlmprune.core.errors import UserError
from vlmprune.models.base import Adapter


def refuse_images_beside_videos(adapter: Adapter, call: Mapping[str, Any]) -> None:
    """Raise UserError if a call of `adapter.inner` with these arguments holds both."""
    encoded = call.get("mm_encoder_outputs") or {}
    pixels = adapter.pixels.items()
    given = [modality for modality, name in pixels if call.get(name) is not None or encoded.get(modality) is not None]
    if len(given) > 1:
        raise UserError(
            f"{adapter.family} in transformers cannot tell the slots of images from those of videos in one call: give "
            "either images or videos."
        )
