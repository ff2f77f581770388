"""The vision side: run the tower once, read what the methods declared, carry it to the text model.

`get_image_features` (and `get_video_features`) is wrapped on the instance. The record of a call rides on the output
object: `generate` encodes before the prefill and hands that object on, so a record can never meet another prompt.
"""

from __future__ import annotations

import functools
import inspect
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from vlmprune.core.budget import Keep, resolve_keep
from vlmprune.core.errors import UserError
from vlmprune.core.method import PixelMethod
from vlmprune.core.recipe import Recipe, Stage
from vlmprune.core.signals import (
    ENCODER_NEEDS,
    USED,
    ClsAttention,
    Depth,
    EncoderKeys,
    EncoderLayer,
    Need,
    ReceivedAttention,
    TowerFeatures,
)
from vlmprune.core.view import Grid, TowerRows
from vlmprune.models.base import Adapter
from vlmprune.runtime.taps import AttentionCall, capture
from vlmprune.scores import attention_rows, received_attention

Key = tuple[str, int]  # what was read, at which encoder layer


@dataclass
class ImageTokens:
    """The visual tokens of one image as the tower delivers them.

    Attributes:
        count: placeholder slots of the image in the prompt.
        grid: its slot grid.
        features: [m, D] projected features; m < count after a pixel method.
        slots: [m] the slot each token stands at.
        layout: grid of the m tokens (the smaller one after a pixel method).
        signals: encoder statistics as rows of the m tokens.
    """

    count: int
    grid: Grid | None
    features: Tensor
    slots: Tensor
    layout: Grid | None
    signals: dict[Key, Any] = field(default_factory=dict)


@dataclass
class VisionRecord:
    images: list[ImageTokens]
    shared: bool = False  # encoded by encode_images, for several methods
    seconds: float = 0.0


def encoder_layer(adapter: Adapter, layer: EncoderLayer) -> int:
    """The 0-based encoder layer that a need names."""
    depth = len(adapter.encoder_layers)
    if isinstance(layer, Depth):
        return layer.index(depth, adapter.full_layers)
    if layer == USED:
        return adapter.used_layer
    if isinstance(layer, int) and -depth <= layer < depth:
        return layer % depth
    raise UserError(f"There is no encoder layer {layer!r}: this tower has layers 0 to {depth - 1}.")


def signal_key(adapter: Adapter, need: Need) -> Key:
    """Which statistic a need resolves to on this model."""
    if isinstance(need, TowerFeatures):
        return ("tower", adapter.used_layer)
    if isinstance(need, ClsAttention):
        return ("cls" if adapter.has_cls else "received", encoder_layer(adapter, need.layer))
    if isinstance(need, ReceivedAttention):
        return ("received", encoder_layer(adapter, need.layer))
    if isinstance(need, EncoderKeys):
        return ("keys", encoder_layer(adapter, need.layer))
    raise TypeError(f"{need!r} is not read from the encoder")


def encoder_keys(adapter: Adapter, recipes: Iterable[Recipe]) -> set[Key]:
    """Everything that the recipes' methods read from the encoder."""
    needs = (need for r in recipes for s in r.stages for need in s.method.needs(adapter.info).values())
    return {signal_key(adapter, need) for need in needs if isinstance(need, ENCODER_NEEDS)}


def layers_read(adapter: Adapter, recipe: Recipe) -> dict[str, int]:
    """The 0-based encoder layer of each signal, by `method.signal`."""
    layers = {}
    for stage in recipe.stages:
        method = stage.method
        for name, need in method.needs(adapter.info).items():
            if isinstance(need, ENCODER_NEEDS):
                layers[f"{method.name}.{name}"] = signal_key(adapter, need)[1]
    return layers


def pixel_stage(recipe: Recipe) -> Stage | None:
    first = recipe.stages[0] if recipe.stages else None
    return first if first is not None and isinstance(first.method, PixelMethod) else None


class VisionWrapper:
    """Stands before one `get_*_features` while a session or `encode_images` is open."""

    def __init__(
        self,
        adapter: Adapter,
        modality: str,
        keys: set[Key],
        pixels: Stage | None,
        seen: Callable[[str, VisionRecord], None],
    ) -> None:
        self.adapter, self.modality, self.keys, self.pixels, self.seen = adapter, modality, keys, pixels, seen
        self.name = adapter.feature_functions[modality]
        self.original = getattr(adapter.inner, self.name)

    def install(self) -> None:
        # generate inspects the signature to decide what to pre-encode, hence functools.wraps
        @functools.wraps(self.original)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            bound = inspect.signature(self.original).bind(*args, **kwargs).arguments
            call = {**{name: value for name, value in bound.items() if name != "kwargs"}, **bound.get("kwargs", {})}
            return self.run(call)

        setattr(self.adapter.inner, self.name, wrapper)

    def remove(self) -> None:
        self.adapter.inner.__dict__.pop(self.name, None)

    def run(self, call: dict[str, Any]) -> Any:
        """`get_*_features` of these arguments; the record is put on its output as `vlmprune_record`."""
        whole, used = self._resized(call) if self.pixels is not None else (None, call)
        layers = sorted({layer for _, layer in self.keys})
        attentions = [self.adapter.encoder_attentions[layer] for layer in layers]
        tower: list[Tensor] = []
        handle = None
        if any(kind == "tower" for kind, _ in self.keys) and self.adapter.tower_rows_exist():
            handle = self.adapter.encoder_layers[self.adapter.used_layer].register_forward_hook(
                lambda module, args, output: tower.append(output[0] if isinstance(output, tuple) else output)
            )
        try:
            with capture(attentions) as calls:
                output = self.original(**{**used, "return_dict": True})
        finally:
            if handle is not None:
                handle.remove()
        start = time.perf_counter()
        features = list(output.pooler_output)
        grids = self.adapter.grids(self.modality, used)
        record = VisionRecord([_tokens(f, grid) for f, grid in zip(features, grids, strict=True)])
        for key in sorted(self.keys):
            kind, layer = key
            per_image = self._statistic(kind, calls[self.adapter.encoder_attentions[layer]], tower, used)
            for image, rows in zip(record.images, per_image or [None] * len(features), strict=True):
                image.signals[key] = TowerRows(image.features, None) if rows is None else rows
        if whole is not None:
            output.pooler_output = _spread(record, whole)
        record.seconds = time.perf_counter() - start
        output.vlmprune_record = record
        self.seen(self.modality, record)
        return output

    def _statistic(
        self, kind: str, calls: list[AttentionCall], tower: list[Tensor], call: dict[str, Any]
    ) -> list[Any] | None:
        """One entry an image: rows with the CLS row apart for features and keys, rows alone for scores."""
        if kind == "tower":
            return self.adapter.rows(self.modality, call, tower) if tower else None
        if kind == "keys":
            return self.adapter.rows(self.modality, call, [c.key.float().mean(1) for c in calls])
        if kind == "cls":
            chunks = [attention_rows(c.query[:, :, :1], c.key, c.scaling)[:, 0] for c in calls]
        else:
            chunks = [received_attention(c.query, c.key, c.scaling) for c in calls]
        return [rows.rows for rows in self.adapter.rows(self.modality, call, chunks)]

    def _resized(self, call: dict[str, Any]) -> tuple[list[Grid] | None, dict[str, Any]]:
        """The images' own grids and the arguments for smaller ones; None and `call` where the budget is every token."""
        assert self.pixels is not None and isinstance(self.pixels.method, PixelMethod)
        grids = _require_grids(self.adapter.grids(self.modality, call))
        smaller = [self._smaller(grid, self.pixels.method, self.pixels.keep) for grid in grids]
        return (None, call) if smaller == grids else (grids, self.adapter.resize(self.modality, call, smaller))

    @staticmethod
    def _smaller(grid: Grid, method: PixelMethod, keep: Keep) -> Grid:
        budget = resolve_keep(keep, grid.size)
        return grid if budget >= grid.size else method.resize(grid, budget)


def _spread(record: VisionRecord, grids: Sequence[Grid]) -> list[Tensor]:
    """Lay the smaller images' tokens over their own grids.

    Returns:
        Features with the full number of rows (zeros at the end), as the prompt has placeholders for all.
    """
    padded = []
    for image, grid in zip(record.images, grids, strict=True):
        image.count, image.grid = grid.size, grid
        assert image.layout is not None
        image.slots = cell_slots(image.layout, grid).to(image.features.device)
        padded.append(nn.functional.pad(image.features, (0, 0, 0, grid.size - image.features.shape[0])))
    return padded


def cell_slots(small: Grid, grid: Grid) -> Tensor:
    """For each cell of the smaller grid, the slot of `grid` under its centre. LongTensor [small.size]."""
    rows = ((torch.arange(small.rows) + 0.5) * grid.rows / small.rows).long()
    cols = ((torch.arange(small.cols) + 0.5) * grid.cols / small.cols).long()
    frames = torch.arange(grid.frames) * grid.rows * grid.cols
    return (frames[:, None, None] + rows[:, None] * grid.cols + cols).flatten()


def _tokens(features: Tensor, grid: Grid | None) -> ImageTokens:
    count = features.shape[0]
    return ImageTokens(count, grid, features, torch.arange(count, device=features.device), grid)


def _require_grids(grids: Sequence[Grid | None]) -> list[Grid]:
    if any(grid is None for grid in grids):
        raise UserError("downsample needs a model whose visual slots form a grid; this one has slots outside it.")
    return [grid for grid in grids if grid is not None]
