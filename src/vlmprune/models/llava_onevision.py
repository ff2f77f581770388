"""LLaVA-OneVision: LLaVA-NeXT's tiles on a canvas that shrinks beyond a limit, and videos pooled 2 x 2."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vlmprune.core.view import Grid
from vlmprune.models.base import Slots
from vlmprune.models.llava_next import LlavaNextAdapter


class LlavaOnevisionAdapter(LlavaNextAdapter):
    families = ("llava_onevision",)
    feature_functions = {"image": "get_image_features", "video": "get_video_features"}
    tower_rows = False  # a slot of a shrunk canvas or of a video mixes several projected rows

    def tiles(self, call: dict[str, Any]) -> list[int]:
        counts = call.get("batch_num_images")
        alone = [True] * len(call["image_sizes"]) if counts is None else [n == 1 for n in counts for _ in range(n)]
        return [tiles if cut else 1 for tiles, cut in zip(super().tiles(call), alone, strict=True)]

    def project(self, rows: Tensor) -> Tensor:
        return rows  # they are projected already

    def pack(self, values: Tensor, call: dict[str, Any]) -> list[Tensor]:
        packed, _ = self.inner.pack_image_features(
            values.split(self.tiles(call)),
            call["image_sizes"],
            image_newline=torch.full(values.shape[-1:], float("nan"), device=values.device),
            vision_aspect_ratio=self.config.vision_aspect_ratio,
        )
        return packed

    def slots(self, modality: str, call: dict[str, Any], counts: Sequence[int] | None = None) -> list[Slots]:
        if modality == "image":
            return super().slots(modality, call, counts)
        side = -(-(self.config.vision_config.image_size // self.config.vision_config.patch_size) // 2)
        videos, frames = call["pixel_values_videos"].shape[:2]
        grid = Grid(side, side, frames)
        return [Slots(grid, nn.functional.pad(torch.arange(grid.size), (0, 1), value=-1))] * videos

    def laid_out(self, modality: str, call: dict[str, Any], values: Tensor) -> list[Tensor]:
        if modality == "image":
            return super().laid_out(modality, call, values)
        pooled = self.inner.apply_pooling(values.reshape(*values.shape[:2], -1).float())
        videos = (video.flatten(0, 1) for video in pooled.split(self.pieces(modality, call)))
        whole = (nn.functional.pad(video, (0, 0, 0, 1), value=float("nan")) for video in videos)  # image_newline
        return [video.reshape(-1, *values.shape[2:]) for video in whole]
