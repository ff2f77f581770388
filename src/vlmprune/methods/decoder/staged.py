"""The base of methods that act before several decoder layers and keep fewer tokens each time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from vlmprune.author import Act, At, AtLeast, Keep, Method, ModelInfo, UserError
from vlmprune.core.method import layer_within


@dataclass
class Staged(Method):
    """Base of these methods.

    A subclass says before which layers its authors act (`usual_layers`), what share of the tokens is left after each
    act (`shares`), and how an act selects.

    Args:
        layers: decoder layers (0-based) before which it acts; by default the authors', scaled to this depth.
    """

    stage: ClassVar[str] = "decoder"
    looks_ahead: ClassVar[bool] = False  # reads layer K instead of layer K-1
    reads_attention: ClassVar[bool] = True  # so that it needs a layer with an attention map

    layers: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layers is None:
            return
        wrong = UserError(f"{self.name}: layers={self.layers} must be layer numbers from 1 in increasing order.")
        if not isinstance(self.layers, tuple | list):
            raise wrong
        self.layers = tuple(self.layers)
        for layer in self.layers:
            AtLeast(1).check(self.name, "layer", layer)
        if not self.layers or list(self.layers) != sorted(set(self.layers)):
            raise wrong

    def usual_layers(self, info: ModelInfo) -> tuple[tuple[int, ...], int]:
        """The authors' layers, and the number of layers of their model."""
        raise NotImplementedError

    def shares(self, share: float, layers: Sequence[int], info: ModelInfo) -> Sequence[float]:
        """The share of tokens that is left after each act, for the budget `share`."""
        raise NotImplementedError

    def schedule(self, info: ModelInfo) -> tuple[int, ...]:
        """The layers before which it acts on this model."""
        if self.layers is not None:
            return tuple(layer_within(self.name, layer, info) for layer in self.layers)
        layers = spread(*self.usual_layers(info), info, self.looks_ahead, self.reads_attention)
        if not layers:
            raise UserError(
                f"{self.name}: this model has no decoder layer whose attention it could read and cut behind."
            )
        return layers

    def acts(self, info: ModelInfo, keep: Keep) -> Sequence[int | At | None]:
        layers = self.schedule(info)
        if isinstance(keep, float) and len(self.shares(keep, layers, info)) < len(layers):
            raise UserError(f"{self.name} has no schedule for as many as {len(layers)} layers.")
        return layers

    def decoder_layer(self, info: ModelInfo) -> int:
        return self.schedule(info)[0]

    def budget(self, act: Act, n: int, total: int) -> int:
        share = share_of(act.keep, total)
        left = self.shares(share, act.decoder_layers, act.info)[act.number]
        return min(n, max(self.least, int(total * left + 1e-6)))  # 0.3 of 10 tokens are 3, not 2.9999


def share_of(keep: Keep, total: int) -> float:
    """The budget of an image with `total` tokens, as a share of them."""
    return keep if isinstance(keep, float) else min(1.0, keep / max(1, total))


def spread(
    layers: Sequence[int], depth: int, info: ModelInfo, ahead: bool = False, attention: bool = True
) -> tuple[int, ...]:
    """`layers` of a model with `depth` layers, moved to the same share of this model's depth.

    Each becomes the nearest layer K before which it can act: layer K-1 (`ahead`: layer K itself) has an attention map,
    if it reads one (`attention`), and no layer is taken twice. If the model is not deep enough for all of them, the
    last ones are left out.
    """
    maps = info.attention_layers if attention else None
    readable = range(info.decoder_layers) if maps is None else maps
    places = [layer for layer in range(1, info.decoder_layers) if (layer if ahead else layer - 1) in readable]
    chosen: list[int] = []
    for layer in layers:
        exact = layer * info.decoder_layers / depth
        free = [place for place in places if not chosen or place > chosen[-1]]
        if free:
            chosen.append(min(free, key=lambda place: (abs(place - exact), place)))
    return tuple(chosen)


def interpolate(
    table: Mapping[int, tuple[float, ...]], share: float, of: int, whole: tuple[float, ...] | None = None
) -> tuple[float, ...]:
    """The row of `table` for a budget, linearly interpolated; its keys are numbers of tokens out of `of`.

    The row of 0 tokens is zeros; that of `of` tokens is `whole`, by default `of` everywhere. A share that is within
    half a token (of LLaVA-1.5's 576) of a key means the key.
    """
    near = min(table, key=lambda key: abs(key - share * of))
    tokens = near if abs(near / of - share) < 0.5 / 576 else share * of
    width = len(table[near])
    rows = {0: (0.0,) * width, **table, of: whole or (float(of),) * width}
    below, above = max(key for key in rows if key <= tokens), min(key for key in rows if key >= tokens)
    part = 0.0 if above == below else (tokens - below) / (above - below)
    return tuple(low + part * (high - low) for low, high in zip(rows[below], rows[above], strict=True))
