"""Molmo 2: a view of the whole image, then one of its crops put together; all images of a prompt are one block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vlmprune.core.view import Grid, TowerRows, Whole
from vlmprune.models.base import Adapter, Slots, Turned, raster, split_rows
from vlmprune.models.mixing import refuse_images_beside_videos


class Molmo2Adapter(Adapter):
    """Molmo 2: a view of the whole image and one of its crops; all images of a prompt, markers too, see each other."""

    families: ClassVar[tuple[str, ...]] = ("molmo2",)
    feature_functions = {"image": "get_image_features", "video": "get_video_features"}
    images_behind_caches = False  # those of one prompt all see each other; earlier ones saw no later ones

    # ------------------------------------------------------------------ the language model

    def rotary(self, hidden: Tensor, positions: Tensor, layer: int) -> Turned:
        text = self.text_model
        return (text.rotary_emb if text.rope_types[layer] == "scaled" else text.rotary_emb_unscaled)(hidden, positions)

    def first_norm(self, layer: int) -> nn.Module:
        """An identity in Molmo2-O, whose norms stand behind attention and MLP."""
        return nn.Identity() if self.text_config.norm_after else super().first_norm(layer)

    def blocks(self, call: Mapping[str, Any]) -> Tensor | None:
        refuse_images_beside_videos(self, call)
        types = call.get("mm_token_type_ids")
        return None if types is None else torch.where(types == 1, 0, -1)

    # ------------------------------------------------------------------ the vision encoder

    def encoder_layers(self, modality: str = "image") -> Sequence[nn.Module]:
        return self.inner.vision_tower.layers

    @property
    def used_layer(self) -> int:
        """The last one of those whose outputs the pooling reads."""
        depth = len(self.encoder_layers())
        return max(layer % depth for layer in self.config.adapter_config.vision_feature_layer)

    # ------------------------------------------------------------------ from patches to slots

    def slots(self, modality: str, call: dict[str, Any], counts: Sequence[int] | None = None) -> list[Slots]:
        if modality == "video":
            return [raster(Grid(rows, cols, frames)) for frames, rows, cols in call["video_grids"].tolist()]
        return [_views(Grid(*grids[:2]), Grid(*grids[2:])) for grids in call["image_grids"].tolist()]

    def rows(
        self, modality: str, call: dict[str, Any], chunks: Sequence[Tensor], counts: Sequence[int]
    ) -> list[TowerRows]:
        patches = torch.cat([chunk.flatten(0, 1) for chunk in chunks])
        behind = self._behind(modality, call).to(patches.device)
        real = (behind >= 0).to(patches).view(*behind.shape, *[1] * (patches.ndim - 1))
        means = (patches[behind.clamp(min=0)] * real).sum(1) / real.sum(1)
        return [TowerRows(image, None) for image in split_rows(means, counts)]

    def pixel_rows(self, modality: str, call: dict[str, Any], normalized: bool) -> list[Tensor]:
        """Patches that a slot at the edge lacks are zero, the mean colour."""
        pixels = call[self.pixels[modality]].float().flatten(0, -2)
        behind = self._behind(modality, call).to(pixels.device)
        rows = pixels[behind.clamp(min=0)].masked_fill((behind < 0)[..., None], 0)
        if not normalized:
            rows = self.raw(rows.unflatten(2, (-1, 3)), axis=-1)
        counts = [len(place.cells) for place in self.slots(modality, call)]
        return split_rows(rows.flatten(1), counts)

    @staticmethod
    def _behind(modality: str, call: dict[str, Any]) -> Tensor:
        """[slots, k] the patches that are pooled into each slot, numbered through all crops; -1 for none."""
        numbers: Tensor = call[f"{modality}_token_pooling"].long()
        return numbers[(numbers >= 0).any(1)]  # rows of none only fill a batch


def _views(low: Grid, high: Grid) -> Slots:
    """The whole image in few slots, then again in more, as two frames of one grid, of which each may fill a part."""
    if not high.size:
        return raster(low)
    grid = Grid(max(low.rows, high.rows), max(low.cols, high.cols), 2)
    cells = torch.arange(grid.size).view(2, grid.rows, grid.cols)
    own = [cells[frame, : view.rows, : view.cols].flatten() for frame, view in enumerate((low, high))]
    before = nn.functional.pad(torch.arange(low.size), (0, high.size), value=-1)
    behind = nn.functional.pad(torch.arange(high.size), (low.size, 0), value=-1)
    return Slots(grid, torch.cat(own), (Whole("whole image", low, before), Whole("crops", high, behind)))
