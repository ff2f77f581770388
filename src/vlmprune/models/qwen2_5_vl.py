"""Qwen2.5-VL: window attention, a 2x2 merger that makes one slot of four patches, M-RoPE (time, row, column)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.vision_utils import get_vision_window_index

from vlmprune.core.view import Grid, TowerRows
from vlmprune.models.base import Adapter, split_rows


class Qwen25VLAdapter(Adapter):
    family = "qwen2_5_vl"
    feature_functions = {"image": "get_image_features", "video": "get_video_features"}

    @property
    def encoder_layers(self) -> Sequence[nn.Module]:
        return self.inner.visual.blocks

    @property
    def encoder_attentions(self) -> Sequence[nn.Module]:
        return [block.attn for block in self.inner.visual.blocks]

    @property
    def placeholder_ids(self) -> dict[str, int]:
        return {"image": self.config.image_token_id, "video": self.config.video_token_id}

    @property
    def full_layers(self) -> tuple[int, ...]:
        return tuple(self.config.vision_config.fullatt_block_indexes)

    def tower_rows_exist(self) -> bool:
        return False  # the merger reads four patches for each slot

    def grids(self, modality: str, call: dict[str, Any]) -> list[Grid | None]:
        merge = self.config.vision_config.spatial_merge_size
        return [Grid(h // merge, w // merge, t) for t, h, w in self._thw(modality, call).tolist()]

    def rows(self, modality: str, call: dict[str, Any], chunks: Sequence[Tensor]) -> list[TowerRows]:
        vision, thw = self.config.vision_config, self._thw(modality, call)
        window_index, _ = get_vision_window_index(
            thw,
            spatial_merge_size=vision.spatial_merge_size,
            window_size=vision.window_size,
            patch_size=vision.patch_size,
        )
        merge = vision.spatial_merge_size**2
        values = merged_raster(torch.cat([chunk.flatten(0, 1) for chunk in chunks]), window_index, merge)
        return [TowerRows(image, None) for image in split_rows(values, (thw.prod(-1) // merge).tolist())]

    def resize(self, modality: str, call: dict[str, Any], grids: Sequence[Grid]) -> dict[str, Any]:
        name = "pixel_values" if modality == "image" else "pixel_values_videos"
        vision, thw = self.config.vision_config, self._thw(modality, call)
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

    def _thw(self, modality: str, call: dict[str, Any]) -> Tensor:
        return call[f"{modality}_grid_thw"]


def merged_raster(values: Tensor, window_index: Tensor, merge: int = 4) -> Tensor:
    """Patch values [P, ...] in the tower's window order to slot values [P / merge, ...] in raster order.

    A slot's value is the mean over its `merge` patches, which are neighbours in window order.
    """
    slots = values.unflatten(0, (-1, merge)).mean(1)
    return slots[torch.argsort(window_index).to(values.device)]
