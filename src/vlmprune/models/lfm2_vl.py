"""LFM2-VL: SigLIP 2, pictures of any size in padded rows of patches, 2 x 2 a slot; convolutions between attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vlmprune.core.view import Grid, TowerRows
from vlmprune.models.patches import block_mean
from vlmprune.models.raster import RasterAdapter


class Lfm2VlAdapter(RasterAdapter):
    """LFM2-VL: each tile of a picture, and the whole behind them, is an image; some decoder layers are convolutions."""

    families = ("lfm2_vl",)

    # ------------------------------------------------------------------ the language model

    def layer_kind(self, layer: int) -> str:
        """A convolution over the last few tokens keeps them as a state, as linear attention does."""
        kind = super().layer_kind(layer)
        return "linear_attention" if kind == "conv" else kind

    @property
    def final_norm(self) -> nn.Module:
        return self.text_model.embedding_norm

    def first_norm(self, layer: int) -> nn.Module:
        return self.decoder_layers[layer].operator_norm  # type: ignore[return-value]

    def mlp(self, layer: int) -> nn.Module | None:
        return self.decoder_layers[layer].feed_forward  # type: ignore[return-value]

    # ------------------------------------------------------------------ the vision encoder

    def encoder_layers(self, modality: str = "image") -> Sequence[nn.Module]:
        return self.inner.vision_tower.encoder.layers

    @property
    def patches_a_side(self) -> int:
        return self.config.downsample_factor

    def patch_grids(self, modality: str, call: dict[str, Any]) -> list[Grid]:
        return [Grid(rows, cols) for rows, cols in call["spatial_shapes"].tolist()]

    def rows(
        self, modality: str, call: dict[str, Any], chunks: Sequence[Tensor], counts: Sequence[int]
    ) -> list[TowerRows]:
        grids, side = self.patch_grids(modality, call), self.patches_a_side
        pictures = zip(torch.cat(list(chunks)), grids, strict=True)
        return [TowerRows(block_mean(row[None, : grid.size], grid, side)[0], None) for row, grid in pictures]

    def pictures(self, modality: str, call: dict[str, Any]) -> list[Tensor]:
        patch, grids = self.config.vision_config.patch_size, self.patch_grids(modality, call)
        return [
            row[: grid.size]
            .view(grid.rows, grid.cols, patch, patch, -1)
            .permute(4, 0, 2, 1, 3)
            .flatten(3)
            .flatten(1, 2)
            for row, grid in zip(call["pixel_values"], grids, strict=True)
        ]

    def with_pictures(self, modality: str, call: dict[str, Any], pictures: Sequence[Tensor]) -> dict[str, Any]:
        patch = self.config.vision_config.patch_size
        shapes = [(picture.shape[1] // patch, picture.shape[2] // patch) for picture in pictures]
        values, mask = torch.zeros_like(call["pixel_values"]), torch.zeros_like(call["pixel_attention_mask"])
        for number, (picture, (rows, cols)) in enumerate(zip(pictures, shapes, strict=True)):
            squares = picture.unflatten(2, (cols, patch)).unflatten(1, (rows, patch)).permute(1, 3, 2, 4, 0)
            values[number, : rows * cols] = squares.reshape(rows * cols, -1)
            mask[number, : rows * cols] = 1
        return {
            **call, "pixel_values": values, "pixel_attention_mask": mask,
            "spatial_shapes": call["spatial_shapes"].new_tensor(shapes),
        }  # fmt: skip
