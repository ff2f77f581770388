"""Families whose tower (CLIP, SigLIP or similar) takes pictures of one size: rows x cols patches in raster order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vlmprune.core.errors import UserError
from vlmprune.core.view import Grid, TowerRows
from vlmprune.models.base import Adapter, Slots


class PatchAdapter(Adapter):
    """One slot for each `patches_a_side` x `patches_a_side` patches of a picture, in raster order.

    Attributes:
        patches_a_side: side of the square of patches that one slot covers (more than 1 with pixel shuffle or pooling).
        cls_slot: whether the CLS token has a slot of its own, before those of the patches.
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

    @property
    def patch_size(self) -> tuple[int, int]:
        patch = self.config.vision_config.patch_size
        return (patch[0], patch[1]) if isinstance(patch, list | tuple) else (patch, patch)

    def patch_grid(self, modality: str, call: dict[str, Any]) -> Grid:
        """Patches of one picture."""
        height, width = self.patch_size
        rows, cols = call[self.pixels[modality]].shape[-2:]
        return Grid(rows // height, cols // width)

    def pieces(self, modality: str, call: dict[str, Any]) -> list[int]:
        """Pictures in each piece: 1 for images, the number of frames for videos."""
        return [1] * len(call[self.pixels[modality]])

    def pictures(self, modality: str, call: dict[str, Any]) -> Tensor:
        """The pictures as the tower sees them, one after another: [pictures, 3, height, width]."""
        pixels = call[self.pixels[modality]]
        return pixels.reshape(-1, *pixels.shape[-3:])

    def slots(self, modality: str, call: dict[str, Any], counts: Sequence[int] | None = None) -> list[Slots]:
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

    def rows(
        self, modality: str, call: dict[str, Any], chunks: Sequence[Tensor], counts: Sequence[int]
    ) -> list[TowerRows]:
        values = torch.cat(list(chunks))  # [pictures, tokens, ...]
        cls = values[:, 0] if self.has_cls else None
        patches = block_mean(values[:, int(self.has_cls) :], self.patch_grid(modality, call), self.patches_a_side)
        laid, sizes = self.laid_out(modality, call, patches), self.pieces(modality, call)
        apart: Sequence[Tensor | None] = [None] * len(sizes) if cls is None else cls.split(sizes)
        return [TowerRows(rows, own) for rows, own in zip(laid, apart, strict=True)]

    def laid_out(self, modality: str, call: dict[str, Any], values: Tensor) -> list[Tensor]:
        """Values of each picture's slots [pictures, slots, ...] as rows of slots per piece, with NaN at a CLS slot."""
        if self.cls_slot(modality):
            values = torch.cat([torch.full_like(values[:, :1], float("nan")), values], dim=1)
        return [piece.flatten(0, 1) for piece in values.split(self.pieces(modality, call))]

    def pixel_rows(self, modality: str, call: dict[str, Any], normalized: bool) -> list[Tensor]:
        pictures, side = self.pictures(modality, call).float(), self.patches_a_side
        if not normalized:
            pictures = self.raw(pictures, axis=-3)
        square = (side * self.patch_size[0], side * self.patch_size[1])
        return self.laid_out(modality, call, nn.functional.unfold(pictures, square, stride=square).transpose(1, 2))

    @property
    def slot_pixels(self) -> int | None:
        return self.config.vision_config.patch_size if self.interpolates else None

    @property
    def resizes(self) -> bool:
        return self.interpolates and not any(map(self.cls_slot, self.feature_functions))

    def resize(self, modality: str, call: dict[str, Any], grids: Sequence[Grid]) -> dict[str, Any]:
        if not self.interpolates:
            raise UserError(
                f"The vision encoder of {self.family} gets pictures of one size only, so that resizing them saves no "
                "tokens: choose a method that drops tokens, such as random."
            )
        if len(set(grids)) > 1:
            raise UserError(
                f"{self.family} encodes pictures of one size together, so they cannot be resized to different budgets: "
                "give all images the same one."
            )
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
    """The encoder layer that makes `hidden_states[index]`.

    Raises:
        UserError: no layer makes it: hidden_states[0] are the embeddings, hidden_states[depth] is the last output.
    """
    layer = (index + depth + 1 if index < 0 else index) - 1
    if not 0 <= layer < depth:
        raise UserError(f"No encoder layer makes the features of vision_feature_layer={index}: there are {depth}.")
    return layer
