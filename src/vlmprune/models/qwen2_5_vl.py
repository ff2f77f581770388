"""Qwen2.5-VL: Qwen2-VL with window attention in the tower and absolute time in M-RoPE."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers.vision_utils import get_vision_window_index

from vlmprune.models.qwen2_vl import Qwen2VLAdapter


class Qwen25VLAdapter(Qwen2VLAdapter):
    families = ("qwen2_5_vl",)

    @property
    def full_layers(self) -> tuple[int, ...]:
        return tuple(self.config.vision_config.fullatt_block_indexes)

    def merged(self, values: Tensor, thw: Tensor) -> Tensor:
        vision = self.config.vision_config
        window_index, _ = get_vision_window_index(
            thw,
            spatial_merge_size=vision.spatial_merge_size,
            window_size=vision.window_size,
            patch_size=vision.patch_size,
        )
        return merged_raster(values, window_index, vision.spatial_merge_size**2)


def merged_raster(values: Tensor, window_index: Tensor, merge: int = 4) -> Tensor:
    """Patch values [P, ...] in the tower's window order to slot values [P / merge, ...] in raster order.

    A slot's value is the mean over its `merge` patches, which are neighbours in window order.
    """
    slots = values.unflatten(0, (-1, merge)).mean(1)
    return slots[torch.argsort(window_index).to(values.device)]
