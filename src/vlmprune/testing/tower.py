"""What a vision tower does with one image, by eager attention and hooks, and laid out by hand as rows of slots.

Nothing here asks an adapter: which patches stand behind a slot is declared beside the tiny model.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from vlmprune.testing.family import Family
from vlmprune.testing.images import Arguments, Place, crop_patches, grid_of, places_of
from vlmprune.testing.weights import PATCH


@dataclass
class Layer:
    """What one encoder or decoder layer did, a tensor a call.

    Attributes:
        maps: [pictures, H, N, N] attention after the softmax.
        queries, keys, values: [pictures, H, N, d] after rotary embedding.
        states: [pictures, N, C] output of the layer.
    """

    maps: list[Tensor] = field(default_factory=list)
    queries: list[Tensor] = field(default_factory=list)
    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)
    states: list[Tensor] = field(default_factory=list)


def features(model: Any, arguments: Arguments) -> Tensor:
    """What stands in the slots of one image or video: [slots, hidden]."""
    arguments = {
        key: value for key, value in arguments.items() if not key.endswith(("_ts", "_per_grid"))
    }  # for positions only
    video = "pixel_values_videos" in arguments
    with torch.no_grad():
        inner = getattr(model, "model", model)
        made = (inner.get_video_features if video else inner.get_image_features)(**arguments)
        out = made.pooler_output
        if out is None:  # Llama 4's are projected by the model
            out = inner.multi_modal_projector(made.last_hidden_state)
    rows = torch.cat(list(out)) if isinstance(out, (tuple, list)) else out
    return rows.reshape(-1, rows.shape[-1])


def in_text_model(name: str) -> bool:
    """Whether the module of this name belongs to the language model."""
    return "language_model" in name or "text_model" in name or "lm_head" in name


def tower_layers(model: Any, arguments: Arguments) -> tuple[list[Layer], Tensor]:
    """Its encoder layers and the features [slots, D], of one image or video alone.

    A layer stands in a list and holds an attention module outside the language model, unless its tower did not run.

    Args:
        model: with eager attention.
    """
    modules = {
        name.rpartition(".")[0]: module
        for name, module in model.named_modules()
        if re.search(r"\.\d+\.(attn|attention|self_attn)$", name) and not in_text_model(name)
    }
    layers = {module: Layer() for module in modules.values()}
    with ExitStack() as stack:
        for name, module in modules.items():
            hook = model.get_submodule(name).register_forward_hook(_noting(layers[module]))
            stack.callback(hook.remove)
        stack.enter_context(recording(layers))
        made = features(model, arguments)
    return [layer for layer in layers.values() if layer.maps], made


def _noting(layer: Layer) -> Callable[..., None]:
    def note(module: Any, args: Any, output: Any) -> None:
        rows = output[0] if isinstance(output, tuple) else output
        layer.states.append(rows if rows.ndim > 2 else rows[None])

    return note


@contextmanager
def recording(layers: dict[nn.Module, Layer]) -> Iterator[None]:
    """While transformers' eager attention notes, of these attention modules, what it is given, and its maps."""
    own: dict[tuple[Any, str], Any] = {}
    for modeling in {sys.modules[type(attention).__module__] for attention in layers}:
        for name, forward in vars(modeling).items():  # none is torch's own, in a head that nothing reads
            if name.endswith("eager_attention_forward"):  # Llama 4 has two
                own[modeling, name] = forward

    def recorder(forward: Any) -> Any:
        def record(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
            output, weights = forward(module, query, key, value, *args, **kwargs)
            if module in layers:
                layers[module].maps.append(weights)
                for kept, rows in zip(("queries", "keys", "values"), (query, key, value), strict=True):
                    getattr(layers[module], kept).append(rows)
            return output, weights

        return record

    try:
        for (modeling, name), forward in own.items():
            setattr(modeling, name, recorder(forward))
        yield
    finally:
        for (modeling, name), forward in own.items():
            setattr(modeling, name, forward)


def tower_order(family: Family, seed: int) -> list[Place]:
    """The patches of an image as they stand in the tower, CLS tokens left out."""
    arguments = family.image(seed)[0]
    if (places := places_of(arguments)) is not None:
        return [(tile, row, col) for tile, rows in enumerate(places.tolist()) for col, row in rows if row >= 0]
    grid, pixels = grid_of(arguments), next(value for name, value in arguments.items() if name.startswith("pixel"))
    if grid is None or pixels.dim() > 2:
        every = crop_patches(arguments)
        joined = grid is not None and family.kind.frames > 1  # Kimi: a place stands for all frames of a chunk
        return [place for place in every if place[0] == 0] if joined else every
    frames, rows, cols = grid
    window = family.window or rows + cols  # in slots, on each side
    return [
        (frame, 2 * row + i, 2 * col + j)
        for frame in range(frames)
        for top in range(0, rows // 2, window)
        for left in range(0, cols // 2, window)
        for row in range(top, min(top + window, rows // 2))
        for col in range(left, min(left + window, cols // 2))
        for i in range(2)
        for j in range(2)
    ]


def slot_values(family: Family, seed: int, values: dict[Place, Tensor]) -> Tensor:
    """Values of patches [C] to those of the slots that have patches [slots, C]."""
    rows = []
    for patches, shares in zip(family.patches(seed), family.shares(seed), strict=True):
        if patches:
            parts = [share * values[place] for place, share in zip(patches, shares, strict=True)]
            rows.append(torch.stack(parts).sum(0))
    return torch.stack(rows)


def _cls_first(layer: Layer) -> Layer:
    """What a layer did, its last token before all others."""

    def turned(name: str, *axes: int) -> list[Tensor]:
        return [rows.roll((1,) * len(axes), axes) for rows in getattr(layer, name)]

    heads = {name: turned(name, 2) for name in ("queries", "keys", "values")}
    return Layer(maps=turned("maps", 2, 3), states=turned("states", 1), **heads)


class Expected:
    """Statistics of one image at one encoder layer, as rows of the slots that have patches."""

    def __init__(self, family: Family, seed: int, layer: Layer) -> None:
        self.family, self.seed = family, seed
        self.layer = _cls_first(layer) if family.cls_last else layer

    def mapped(self, tokens: list[Tensor]) -> Tensor:
        """Of values of the tower's tokens [pictures, N, C], a tensor a call."""
        rows = torch.cat([values[:, int(self.family.cls) :].flatten(0, 1) for values in tokens])
        places = places_of(self.family.image(self.seed)[0])
        if places is not None:  # a row of patches is padded
            rows = rows[(places >= 0).all(-1).flatten()]
        order = tower_order(self.family, self.seed)
        if len(rows) > len(order):  # Kimi's slots show all frames of a chunk
            rows = rows.unflatten(0, (-1, len(order))).mean(0)
        if 4 * len(rows) == len(order):  # MiniCPM-V's encoder has made a token of each 2 x 2 patches
            cols = 1 + max(col for _, _, col in order)
            rows = torch.stack([rows[row // 2 * (cols // 2) + col // 2] for _, row, col in order])
        return slot_values(self.family, self.seed, dict(zip(order, rows, strict=True)))

    def heads(self, part: str) -> Tensor:
        """[slots, d] mean over heads of "queries", "keys" or "values"."""
        return self.mapped([rows.mean(1) for rows in getattr(self.layer, part)])

    @property
    def received(self) -> Tensor:
        arguments = self.family.image(self.seed)[0]
        padding, places = arguments.get("pixel_attention_mask"), places_of(arguments)
        scores = []
        for maps in self.layer.maps:
            queries = torch.ones(maps.shape[0], maps.shape[2], dtype=torch.bool)
            if padding is not None and places is None:
                queries = padding[0, :, ::PATCH, ::PATCH].flatten(1).bool()
            if places is not None:
                queries = (places >= 0).all(-1)
            scores.append(torch.stack([one[:, real].mean((0, 1)) for one, real in zip(maps, queries, strict=True)]))
        return self.mapped([score[..., None] for score in scores])[:, 0]

    @property
    def attended(self) -> Tensor:
        if not self.family.cls:
            return self.received
        return self.mapped([maps.mean(1)[:, 0, :, None] for maps in self.layer.maps])[:, 0]

    @property
    def cls_keys(self) -> Tensor:
        return torch.cat([keys.mean(1)[:, 0] for keys in self.layer.keys])
