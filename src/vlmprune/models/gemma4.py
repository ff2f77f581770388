"""Gemma 4: pictures of any size, k x k patches pooled into a slot, or embedded without an encoder; two-way images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers.models.gemma4.modeling_gemma4 import get_block_sequence_ids_for_mask

from vlmprune.core.errors import UserError
from vlmprune.core.view import Grid, TowerRows
from vlmprune.models.base import Adapter, Normalisation, Slots, raster

PLACES = {"image": "image_position_ids", "video": "video_position_ids"}  # (x, y) of each patch, -1 for padding


class Gemma4Adapter(Adapter):
    """Gemma 4: k x k patches pooled into a slot; in sliding layers an image sees itself; last layers may share keys."""

    families: ClassVar[tuple[str, ...]] = ("gemma4",)
    feature_functions = {"image": "get_image_features", "video": "get_video_features"}
    normalisation = Normalisation((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))  # the model scales pixels itself
    text_arguments: ClassVar[tuple[str, ...]] = ("per_layer_inputs",)
    layer_arguments: ClassVar[tuple[str, ...]] = ("per_layer_input",)

    @classmethod
    def knows(cls, config: Any) -> bool:
        """Not a language model whose whole prompt sees itself."""
        return config.get_text_config().use_bidirectional_attention != "all"

    # ------------------------------------------------------------------ the language model

    @property
    def first_sharing(self) -> int:
        return len(self.decoder_layers) - (self.text_config.num_kv_shared_layers or 0)

    def stored_by(self, layer: int) -> int:
        """The last layer of its kind that stores keys, for the layers that share them."""
        if layer < self.first_sharing:
            return layer
        kind = self.layer_kind(layer)
        return max(other for other in range(self.first_sharing) if self.layer_kind(other) == kind)

    def check_inside(self, layer: int) -> None:
        """The layers that share keys must all see what the first of those layers stored whose keys they read."""
        sharing = range(self.first_sharing, len(self.decoder_layers))
        first = min((self.stored_by(other) for other in sharing), default=layer)
        if layer > first:
            raise UserError(
                f"Decoder layers {sharing[0]}-{sharing[-1]} of this {self.family} read the keys that layers from "
                f"{first} on store, so tokens can be cut before the language model or before layers 1 to {first}, not "
                f"before layer {layer}."
            )

    def two_way(self, kind: str, cache: Any) -> bool:
        return kind == "sliding_attention"

    def blocks(self, call: Mapping[str, Any]) -> Tensor | None:
        types = call.get("mm_token_type_ids")
        if types is None or self.text_config.use_bidirectional_attention != "vision":
            return None
        return get_block_sequence_ids_for_mask(types, device=types.device)

    # ------------------------------------------------------------------ the vision encoder

    def encoder_layers(self, modality: str = "image") -> Sequence[Any]:
        return self.inner.vision_tower.encoder.layers

    @property
    def patches_a_side(self) -> int:
        return self.config.vision_config.pooling_kernel_size

    def slots(self, modality: str, call: dict[str, Any], counts: Sequence[int] | None = None) -> list[Slots]:
        return [raster(self._grid(frames)) for frames in self._pieces(modality, call)]

    def rows(
        self, modality: str, call: dict[str, Any], chunks: Sequence[Tensor], counts: Sequence[int]
    ) -> list[TowerRows]:
        frames = iter(torch.cat(list(chunks)))
        return [
            TowerRows(torch.cat([self._pooled(next(frames), places) for places in piece]), None)
            for piece in self._pieces(modality, call)
        ]

    def pixel_rows(self, modality: str, call: dict[str, Any], normalized: bool) -> list[Tensor]:
        side = self.patches_a_side
        found, frames = [], iter(call[self.pixels[modality]].float())
        for piece in self._pieces(modality, call):
            rows = []
            for places in piece:
                real = (places >= 0).all(-1)
                at, grid = places[real], self._grid(places[None])
                slot = at.div(side, rounding_mode="floor")
                within = at % side
                number = (slot[:, 1] * grid.cols + slot[:, 0]) * side**2 + within[:, 1] * side + within[:, 0]
                pixels = next(frames)[real.to(call[self.pixels[modality]].device)]
                if not normalized:
                    pixels = self.raw(pixels.unflatten(1, (-1, 3)), axis=-1).flatten(1)
                rows.append(pixels[torch.argsort(number).to(pixels.device)].unflatten(0, (-1, side**2)).flatten(1))
            found.append(torch.cat(rows))
        return found

    def _pieces(self, modality: str, call: dict[str, Any]) -> list[Tensor]:
        """[frames, patches, 2] places of the patches of each image or video."""
        places: Tensor = call[PLACES[modality]]
        frames = [1] * len(places) if modality == "image" else call["num_frames_per_video"].tolist()
        return list(places.split(frames))

    def _grid(self, places: Tensor) -> Grid:
        cols, rows = (places[0].amax(0) + 1).div(self.patches_a_side, rounding_mode="floor").tolist()
        return Grid(rows, cols, len(places))

    def _pooled(self, values: Tensor, places: Tensor) -> Tensor:
        """Values of a picture's patches [P, ...] to those of its slots, in raster order."""
        real = (places >= 0).all(-1)
        cells = places[real].div(self.patches_a_side, rounding_mode="floor").to(values.device)
        grid = self._grid(places[None])
        index = cells[:, 1] * grid.cols + cells[:, 0]
        total = values.new_zeros(grid.rows * grid.cols, *values.shape[1:])
        return total.index_add(0, index, values[real.to(values.device)]) / self.patches_a_side**2


class Gemma4UnifiedAdapter(Gemma4Adapter):
    """Gemma 4 unified: no encoder, a patch is a slot; where an image sees itself depends on who makes the masks."""

    families = ("gemma4_unified",)
    text_arguments = ()
    layer_arguments = ()

    def two_way(self, kind: str, cache: Any) -> bool:
        return super().two_way(kind, cache) or not _is_static(cache)

    def window_cuts_blocks(self, cache: Any) -> bool:
        return _is_static(cache)

    def blocks(self, call: Mapping[str, Any]) -> Tensor | None:
        """By Gemma 4's rule in masks of `generate`, which makes them for static caches; else the model makes others."""
        blocks = super().blocks(call)
        if blocks is not None and isinstance(call.get("attention_mask"), dict) != _is_static(call.get("cache")):
            raise UserError(
                f"What an image of {self.family} sees depends on whether generate() makes the masks, for a static "
                "cache, or the model itself, for any other: leave static caches to generate(), and pass an "
                "attention_mask with one number for each token."
            )
        return blocks

    def encoder_layers(self, modality: str = "image") -> Sequence[Any]:
        return ()

    def check_statistics(self) -> None:
        raise UserError(
            f"Methods that read the vision encoder cannot run on {self.family}: it has none, and embeds patches by one "
            "projection."
        )

    @property
    def patches_a_side(self) -> int:
        return 1  # what the processor calls a patch here is a square of smaller ones


def _is_static(cache: Any) -> bool:
    """Whether `generate` makes the masks for this cache."""
    return bool(getattr(cache, "is_compileable", False))
