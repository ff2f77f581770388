"""Inputs of models with random weights, made as tensors: neither a processor nor a picture is needed."""

from __future__ import annotations

import math
from typing import Any

import torch

from vlmprune.core.errors import UserError

TEXT_TOKENS = 40
_BEFORE = 10  # of them, those before the picture


def random_inputs(model: Any, visual: int, batch: int, text: int = TEXT_TOKENS) -> dict[str, torch.Tensor]:
    """Inputs of one prompt a sample, with so many visual tokens.

    Args:
        model: of `random_model`.
        visual: visual tokens a sample.
        batch: samples, each with pictures of its own.
        text: tokens of text.

    Raises:
        UserError: the architecture makes no picture of so many tokens; the sentence names the nearest numbers.
    """
    config, generator = model.config, torch.Generator().manual_seed(0)
    vision = config.vision_config
    if hasattr(vision, "spatial_merge_size"):
        pictures, counts = _grid(vision, visual, batch, generator)
    elif getattr(config, "image_grid_pinpoints", None):
        pictures, counts = _canvases(config, visual, batch, generator)
    else:
        pictures, counts = _tiles(config, visual, batch, generator)
    words = torch.randint(3, 1000, (batch, text), generator=generator)  # below the placeholders of any vocabulary
    image = torch.full((batch, 1), config.image_token_id)
    parts = [words[:, :_BEFORE], *(image.expand(batch, count) for count in counts), words[:, _BEFORE:]]
    ids = torch.cat(parts, dim=1)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **pictures}
    if "image_grid_thw" in pictures:
        inputs["mm_token_type_ids"] = (ids == config.image_token_id).int()
    place, kind = model.device, model.dtype
    return {name: v.to(place, kind) if v.is_floating_point() else v.to(place) for name, v in inputs.items()}


def usual_visual(model: Any) -> int:
    """Visual tokens of one picture of a usual size: 24 x 24, or what fills LLaVA-NeXT's largest canvas."""
    config = model.config
    if getattr(config, "image_grid_pinpoints", None):
        return max(_sizes(config))
    if hasattr(config.vision_config, "spatial_merge_size"):
        return 576
    return _each(config)


Pictures = tuple[dict[str, torch.Tensor], list[int]]


def _grid(vision: Any, visual: int, batch: int, generator: torch.Generator) -> Pictures:
    """Qwen's: one picture of any grid, here the one that is most nearly square."""
    rows = max(n for n in range(1, math.isqrt(visual) + 1) if visual % n == 0)
    cols = visual // rows
    if cols > 4 * rows:
        near = math.isqrt(visual)
        raise UserError(
            f"{visual} visual tokens make no grid that is nearly square: give {near * near} or {near * (near + 1)}."
        )
    side = vision.spatial_merge_size
    patches, width = visual * side**2, 3 * vision.temporal_patch_size * vision.patch_size**2
    return {
        "pixel_values": torch.randn(batch * patches, width, generator=generator),
        "image_grid_thw": torch.tensor([[1, rows * side, cols * side]] * batch),
    }, [visual]


def _canvases(config: Any, visual: int, batch: int, generator: torch.Generator) -> Pictures:
    """LLaVA-NeXT's: one picture that fills one of its canvases to the edge."""
    vision = config.vision_config
    sizes = _sizes(config)
    if visual not in sizes:
        known = ", ".join(map(str, sorted(sizes)))
        raise UserError(f"{config.model_type} makes no picture of {visual} visual tokens: give one of {known}.")
    height, width = sizes[visual]
    tiles = 1 + (height // vision.image_size) * (width // vision.image_size)
    return {
        "pixel_values": torch.randn(batch, tiles, 3, vision.image_size, vision.image_size, generator=generator),
        "image_sizes": torch.tensor([[height, width]] * batch),
    }, [visual]


def _sizes(config: Any) -> dict[int, tuple[int, int]]:
    """Height and width of each canvas, by its visual tokens."""
    vision = config.vision_config
    side = vision.image_size // vision.patch_size
    return {
        side**2 + down * side * (across * side + 1): (height, width)
        for height, width in config.image_grid_pinpoints
        for down, across in [(height // vision.image_size, width // vision.image_size)]
    }


def _tiles(config: Any, visual: int, batch: int, generator: torch.Generator) -> Pictures:
    """Pictures of the tower's own size, as many as it takes: LLaVA-1.5's, or InternVL's tiles."""
    height, width = _pair(config.vision_config.image_size)
    each = _each(config)
    count, rest = divmod(visual, each)
    if rest or not count:
        raise UserError(
            f"{config.model_type} makes {each} visual tokens of a picture: give a multiple of that, not {visual}."
        )
    return {"pixel_values": torch.randn(batch * count, 3, height, width, generator=generator)}, [each] * count


def _each(config: Any) -> int:
    """Visual tokens of a picture of the tower's own size."""
    vision = config.vision_config
    rows, cols = (size // patch for size, patch in zip(_pair(vision.image_size), _pair(vision.patch_size)))
    return round(rows * cols * getattr(config, "downsample_ratio", 1) ** 2)


def _pair(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])
