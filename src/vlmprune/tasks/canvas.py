"""How scenes are drawn to suit a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Canvas:
    """How scenes are drawn for a model.

    Attributes:
        sizes: (width, height) in pixels of the drawn scenes; each scene gets one at random.
        scale: enlargement of the drawn scene before the model's processor sees it.
    """

    sizes: tuple[tuple[int, int], ...] = ((112, 112),)
    scale: float = 1.0

    def __str__(self) -> str:
        return "+".join(f"{width}x{height}" for width, height in self.sizes) + f"*{self.scale:g}"


FIXED = Canvas()
MIXED = Canvas(((120, 120), (160, 90), (90, 160)))
_CELL = 10  # pixels per visual slot that the mixed sizes are drawn for


def canvas_for(config: Any) -> Canvas:
    """Scenes that suit a model: its tower's fixed size, or the mixed sizes scaled to its slots.

    Args:
        config: the transformers configuration.
    """
    vision = getattr(config, "vision_config", config)
    side, patch = getattr(vision, "image_size", None), getattr(vision, "patch_size", None)
    merge = getattr(vision, "spatial_merge_size", None)
    if isinstance(side, int):
        return Canvas(FIXED.sizes, max(1.0, side / FIXED.sizes[0][0]))
    if isinstance(patch, int) and isinstance(merge, int):
        return Canvas(MIXED.sizes, max(1.0, patch * merge / _CELL))
    return Canvas(FIXED.sizes, 4.0)
