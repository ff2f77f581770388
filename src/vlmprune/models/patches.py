"""Families whose tower (CLIP, SigLIP and the like) sees pictures of one size: rows x cols patches, raster order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vlmprune.core.view import Grid, TowerRows
from vlmprune.models.base import Adapter, Slots


class PatchAdapter(Adapter):
    """One slot for each `patches_a_side` x `patches_a_side` patches of a picture, in raster order.

    Attributes:
        patches_a_side: of the square that one slot covers (pixel shuffle and average pooling: more than 1).
        cls_slot: whether the CLS token has a slot of its own, before the patches'.
        interpolates: whether the tower takes pictures of any size (`interpolate_pos_encoding`).
    """

    interpolates: ClassVar[bool] = False

    @property
    def patches_a_side(self) -> int:
        return 1

    def cls_slot(self, modality: str) -> bool:
        return False

    def encoder_layers(self, modality: str = "image") -> Sequence[nn.Module]:
        return self.inner.vision_tower.encoder.layers

    def patch_grid(self, modality: str, call: dict[str, Any]) -> Grid:
        """Patches of one picture."""
        patch = self.config.vision_config.patch_size
        height, width = patch if isinstance(patch, list | tuple) else (patch, patch)
        rows, cols = call[self.pixels[modality]].shape[-2:]
        return Grid(rows // height, cols // width)

    def pieces(self, modality: str, call: dict[str, Any]) -> list[int]:
        """Pictures in each piece: 1 for images, the number of frames for videos."""
        return [1] * len(call[self.pixels[modality]])

    def slots(self, modality: str, call: dict[str, Any]) -> list[Slots]:
        patches, side = self.patch_grid(modality, call), self.patches_a_side
        grid = Grid(patches.rows // side, patches.cols // side)
        cells = torch.arange(grid.size)
        if self.cls_slot(modality):
            cells = nn.functional.pad(cells, (1, 0), value=-1)
        found = []
        for frames in self.pieces(modality, call):
            offsets = grid.size * torch.arange(frames)[:, None]
            whole = torch.where(cells >= 0, cells + offsets, -1).flatten()
            found.append(Slots(grid._replace(frames=frames), whole))
        return found

    def rows(self, modality: str, call: dict[str, Any], chunks: Sequence[Tensor]) -> list[TowerRows]:
        values = torch.cat(list(chunks))  # [pictures, tokens, ...]
        cls = values[:, 0] if self.has_cls else None
        patches = block_mean(values[:, int(self.has_cls) :], self.patch_grid(modality, call), self.patches_a_side)
        if self.cls_slot(modality):
            patches = torch.cat([torch.full_like(patches[:, :1], float("nan")), patches], dim=1)
        found, at = [], 0
        for frames in self.pieces(modality, call):
            part = slice(at, at + frames)
            found.append(TowerRows(patches[part].flatten(0, 1), None if cls is None else cls[part]))
            at += frames
        return found

    def resize(self, modality: str, call: dict[str, Any], grids: Sequence[Grid]) -> dict[str, Any]:
        if not self.interpolates:
            return super().resize(modality, call, grids)
        name, patch = self.pixels[modality], self.config.vision_config.patch_size
        size = (grids[0].rows * patch, grids[0].cols * patch)  # one size a batch, as the processor makes them
        pixels = call[name]
        flat = pixels.reshape(-1, *pixels.shape[-3:]).float()
        flat = nn.functional.interpolate(flat, size=size, mode="bicubic", align_corners=False, antialias=True)
        resized = flat.to(pixels.dtype).view(*pixels.shape[:-2], *size)
        return {**call, name: resized, "interpolate_pos_encoding": True}


def block_mean(values: Tensor, grid: Grid, side: int) -> Tensor:
    """Patch values [N, rows * cols, ...] to the means of their `side` x `side` blocks, in raster order."""
    if side == 1:
        return values
    rows, cols = grid.rows // side, grid.cols // side
    return values.unflatten(1, (rows, side, cols, side)).mean((2, 4)).flatten(1, 2)


def layer_of_hidden_state(index: int, depth: int) -> int:
    """The encoder layer that makes `hidden_states[index]`; hidden_states[0] are the embeddings."""
    return (index + depth + 1 if index < 0 else index) - 1
