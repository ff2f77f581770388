"""The part of a picture that a model sees: what its processor's centre crop leaves, and with what padding."""

from __future__ import annotations

from typing import Any, NamedTuple

from PIL import Image


class Window(NamedTuple):
    """The part of a picture that the model saw, in pixels of that picture. The slot grid is stretched over it.

    Where the processor has padded the picture, it reaches beyond it.
    """

    left: float
    top: float
    right: float
    bottom: float

    def scaled(self, across: float, down: float) -> Window:
        """The same part of the picture enlarged by these factors."""
        return Window(self.left * across, self.top * down, self.right * across, self.bottom * down)


def seen_window(processor: Any, size: tuple[int, int]) -> Window:
    """What is left of a picture of `size` (width, height) after the processor's resize and centre crop.

    Every resize of transformers stretches the whole picture, so only a centre crop cuts anything off. Llama 4's pads a
    picture that it does not cut into tiles.
    A processor that says nothing about a crop is taken to show the whole picture.
    """
    width, height = size
    settings = getattr(processor, "image_processor", processor)
    if hasattr(settings, "resize_to_max_canvas"):
        return _in_a_tile(settings, width, height)
    crop = _sizes(getattr(settings, "crop_size", None))
    if not getattr(settings, "do_center_crop", False) or "height" not in crop:
        return Window(0, 0, width, height)
    resized_width, resized_height = _resized(settings, width, height)
    # Integer division as in the processors: an odd margin leaves its larger half at the right and bottom.
    left = (resized_width - crop["width"]) // 2
    top = (resized_height - crop["height"]) // 2
    across, down = width / resized_width, height / resized_height
    return Window(left * across, top * down, (left + crop["width"]) * across, (top + crop["height"]) * down)


def window_on(picture: Image.Image, image: Image.Image, processor: Any) -> Window:
    """The part that the model saw of an image, in pixels of the `picture` that it was enlarged or reduced to."""
    window = seen_window(processor, image.size)
    return window.scaled(picture.width / image.width, picture.height / image.height)


def _sizes(size: Any) -> dict[str, int]:
    """A processor's size settings as a plain dict without the entries that are not set."""
    return {key: value for key, value in dict(size or {}).items() if value}


def _in_a_tile(settings: Any, width: int, height: int) -> Window:
    """Llama 4's: one tile that a picture does not fill, or the one behind several, which shows it without padding."""
    side, most = _sizes(settings.size)["height"], settings.max_patches
    canvases = [(rows, cols) for rows in range(1, most + 1) for cols in range(1, most // rows + 1)]
    scales = {(rows, cols): min(cols * side / width, rows * side / height) for rows, cols in canvases}
    enlarging = [scale for scale in scales.values() if scale >= 1]
    chosen = min(enlarging) if enlarging and not settings.resize_to_max_canvas else max(scales.values())
    if scales[1, 1] != chosen:
        return Window(0, 0, width, height)
    across = max(1, min(int(width * (side / height)), side)) if width <= height else side
    down = max(1, min(int(height * (side / width)), side)) if width > height else side
    return Window(0, 0, width * side / across, height * side / down)


def _resized(settings: Any, width: int, height: int) -> tuple[int, int]:
    """Width and height after the processor's resize, before its crop."""
    if not getattr(settings, "do_resize", True):
        return width, height
    size = _sizes(getattr(settings, "size", None))
    if "height" in size and "width" in size:
        return size["width"], size["height"]
    if "shortest_edge" in size:
        short, long = size["shortest_edge"], int(size["shortest_edge"] * max(width, height) / min(width, height))
        return (short, long) if width <= height else (long, short)
    return width, height
