"""Qwen2-VL and its successors: images of any size, a 2x2 merger that makes one slot of four patches, M-RoPE."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vlmprune.core.view import Grid, TowerRows
from vlmprune.models.base import CLIP, HALF, Adapter, Slots, raster, split_rows


class Qwen2VLAdapter(Adapter):
    families: ClassVar[tuple[str, ...]] = ("qwen2_vl",)
    normalisation = CLIP
    feature_functions = {"image": "get_image_features", "video": "get_video_features"}

    def encoder_layers(self, modality: str = "image") -> Sequence[nn.Module]:
        return self.inner.visual.blocks

    def slots(self, modality: str, call: dict[str, Any], counts: Sequence[int] | None = None) -> list[Slots]:
        merge = self.config.vision_config.spatial_merge_size
        return [raster(Grid(h // merge, w // merge, t)) for t, h, w in self.thw(modality, call).tolist()]

    def rows(
        self, modality: str, call: dict[str, Any], chunks: Sequence[Tensor], counts: Sequence[int]
    ) -> list[TowerRows]:
        values = self.merged(torch.cat([chunk.flatten(0, 1) for chunk in chunks]), self.thw(modality, call))
        return [TowerRows(image, None) for image in split_rows(values, counts)]

    def merged(self, values: Tensor, thw: Tensor) -> Tensor:
        """Patch values [P, ...] in the tower's order to slot values [P / 4, ...] in raster order."""
        return values.unflatten(0, (-1, self.config.vision_config.spatial_merge_size**2)).mean(1)

    def pixel_rows(self, modality: str, call: dict[str, Any], normalized: bool) -> list[Tensor]:
        # the processor writes the patches of a slot one after another, each with all its channels and frames
        pixels, thw = call[self.pixels[modality]].float(), self.thw(modality, call)
        if not normalized:
            pixels = self.raw(pixels.unflatten(1, (3, -1)), axis=-2).flatten(1)
        merge = self.config.vision_config.spatial_merge_size**2
        return split_rows(pixels.unflatten(0, (-1, merge)).flatten(1), (thw.prod(-1) // merge).tolist())

    @property
    def slot_pixels(self) -> int | None:
        return self.config.vision_config.spatial_merge_size * self.config.vision_config.patch_size

    @property
    def resizes(self) -> bool:
        return True

    def resize(self, modality: str, call: dict[str, Any], grids: Sequence[Grid]) -> dict[str, Any]:
        name, vision, thw = self.pixels[modality], self.config.vision_config, self.thw(modality, call)
        merge, patch, depth = vision.spatial_merge_size, vision.patch_size, vision.temporal_patch_size
        flat, shapes = [], []
        images = split_rows(call[name], thw.prod(-1).tolist())
        for image, (t, h, w), grid in zip(images, thw.tolist(), grids, strict=True):
            # processor order of a patch row: (t, h / merge, w / merge, merge, merge), (channel, depth, patch, patch)
            frames = image.view(t, h // merge, w // merge, merge, merge, -1, depth, patch, patch)
            frames = frames.permute(0, 6, 5, 1, 3, 7, 2, 4, 8).reshape(t * depth, -1, h * patch, w * patch)
            rows, cols = grid.rows * merge, grid.cols * merge
            frames = nn.functional.interpolate(
                frames.float(), size=(rows * patch, cols * patch), mode="bicubic", align_corners=False, antialias=True
            )
            frames = frames.view(t, depth, -1, grid.rows, merge, patch, grid.cols, merge, patch)
            flat.append(frames.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(t * rows * cols, -1).to(image.dtype))
            shapes.append((t, rows, cols))
        return {**call, name: torch.cat(flat), f"{modality}_grid_thw": thw.new_tensor(shapes)}

    def thw(self, modality: str, call: dict[str, Any]) -> Tensor:
        return call[f"{modality}_grid_thw"]


class Qwen3VLAdapter(Qwen2VLAdapter):
    """Qwen3-VL: deepstack features and interleaved M-RoPE; timestamps between the frames of a video."""

    families = ("qwen3_vl", "qwen3_vl_moe")
    normalisation = HALF


class Qwen35Adapter(Qwen2VLAdapter):
    """Qwen3.5: some decoder layers are recurrent and have neither an attention map nor keys per token."""

    families = ("qwen3_5", "qwen3_5_moe")
    normalisation = HALF
