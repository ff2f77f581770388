"""Steps of decoding at which the text model does right by itself: the runtime's hooks are off its layers then.

The first step behind every prefill is watched like the prefill. Where it finds that no decoder layer needs a mask, so
it is at every later step of one token: the cache holds real tokens only, and a single query sees all of them. What is
left is the text model's own input, which goes on behind the shortened prompt; the rotary embedding of layers whose
tokens were re-numbered inside the model; and that every layer's keys grow by the one token.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from vlmprune.models.base import Turned, each, parts
from vlmprune.runtime.expected import EMBEDS, MASK, POSITIONS, ROTARY, Expected, cache_of, interface_of

if TYPE_CHECKING:
    from vlmprune.runtime.cache import PrunedState


@dataclass(frozen=True)
class Steady:
    """What a watched step found out.

    Attributes:
        here: `Expected.here`, under which it holds.
        lowered: [B, 1] or [axes, B, 1] what position ids are lowered by at layer 0; None if they are not.
        further: [B, N] or [axes, B, N] by how much more each of N bands lowers them, 0 in the first; without the row
            that counts text. None if none does.
        bands: which of these a decoder layer belongs to, where it is not the first.
        ids: whether decoder layers are told position ids, beside the rotary embedding.
    """

    here: tuple[int, str]
    lowered: Tensor | None = None
    further: Tensor | None = None
    bands: dict[int, int] = field(default_factory=dict)
    ids: bool = True

    def select(self, rows: Tensor) -> Steady:
        """The rows of a cache that was reordered or repeated."""
        lowered, further = (
            None if value is None else value.index_select(-2, rows.to(value.device))
            for value in (self.lowered, self.further)
        )
        return replace(self, lowered=lowered, further=further)


def steady_from(state: PrunedState, here: tuple[int, str], layers: int, ids: bool) -> Steady:
    """For the bands of a cache, whose ids are told by what each lowers them by.

    Args:
        layers: how many the text model has.
    """
    first, *later = [band.delta for band in state.bands]
    if not any(band.own_positions for band in state.bands):
        return Steady(here, None if first is None else first.unsqueeze(-1))
    base = first if first is not None else next(torch.zeros_like(delta) for delta in later if delta is not None)
    further = torch.stack([base, *(base if delta is None else delta for delta in later)], dim=-1) - base.unsqueeze(-1)
    if further.ndim == 3 and len(further) == 4:
        further = further[1:]  # the rotary embedding knows nothing of text
    starts = [band.start for band in state.bands]
    bands = {layer: sum(start <= layer for start in starts) - 1 for layer in range(starts[1], layers)}
    return Steady(here, None if first is None else first.unsqueeze(-1), further, bands, ids)


def lower(positions: Tensor, lowered: Tensor | None) -> Tensor:
    """Position ids behind the shortened prompt, of those behind the whole one; `lowered` as in `Steady`."""
    if lowered is None:
        return positions
    fewer = lowered.ndim == 3 and positions.ndim == 3 and len(lowered) > len(positions) > 1
    lowered = lowered[-len(positions) :] if fewer else lowered  # the user counts no row of text
    return positions - lowered.to(positions.device)


def fits(given: dict[str, Any], mask: Tensor | None, cache: Cache) -> bool:
    """Whether this is one token for each row, none of them padding; any other mask is for a watched step.

    Args:
        given: what the text model is called with.
        mask: [B, past + 1] of the call, where the text model may have been given another one.
    """
    return given[EMBEDS].shape[1] == 1 and all(
        known is None or _real(known, int(cache.get_seq_length())) for known in (mask, given.get(MASK))
    )


def _real(mask: Any, past: int) -> bool:
    return isinstance(mask, Tensor) and mask.ndim == 2 and mask.shape[1] in (1, past + 1) and bool(mask[:, -1].all())


class Step:
    """One such step.

    Attributes:
        renumbers: whether any decoder layer gets a rotary embedding of its own.
    """

    def __init__(self, expected: Expected, steady: Steady, cache: Cache) -> None:
        self._expected, self._steady, self._cache = expected, steady, cache
        self._before = self._stored()
        self.renumbers = steady.further is not None
        self._ids: Tensor | None = None  # [.., B, N] by band
        self._turned: Turned | None = None  # cos and sin [.., N, d] of these
        self._own: dict[int, dict[str, Any]] = {}  # what layers of a band are given

    def enter(self, given: dict[str, Any]) -> dict[str, Any]:
        """The text model's arguments: position ids behind the shortened prompt, and no mask of the whole one."""
        if self._steady.lowered is not None:
            positions = given.get(POSITIONS)
            if positions is None:
                positions = torch.full((1, 1), int(self._cache.get_seq_length()), device=given[EMBEDS].device)
            given[POSITIONS] = lower(positions, self._steady.lowered)
        if given.get(MASK) is not None:
            given[MASK] = None
        return given

    def spread(self, value: Any) -> Any:
        """Position ids of the rotary embedding become those of all bands, side by side."""
        further = self._steady.further
        if further is None:
            return value
        self._ids = value - further.to(value.device)
        return self._ids

    def first(self, turned: Turned) -> Turned:
        """Of the cos and sin of all bands, the first band's."""
        if self._ids is None or parts(turned)[0].shape[-2] != self._ids.shape[-1]:
            self._expected.surprise(
                "The language model made its rotary embedding of other position ids than were given"
            )
        self._turned = turned
        return each(turned, lambda turn: turn[..., :1, :])

    def at_layer(self, number: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A decoder layer's arguments, with the rotary embedding of its band."""
        band = self._steady.bands.get(number, 0)
        if not band:
            return None
        if self._turned is None or self._ids is None:
            self._expected.surprise("The language model made no rotary embedding of the position ids it was given")
            return None
        if band not in self._own:
            at = slice(band, band + 1)
            ids = self._ids[:, at] if self._steady.ids and self._ids.ndim == 2 else None
            self._own[band] = {ROTARY: each(self._turned, lambda turn: turn[..., at, :]), POSITIONS: ids}
        if len(args) > 1:
            named = interface_of(module).named(args, kwargs)
            return (named.pop("hidden_states"),), {**named, **self._own[band]}
        return args, {**kwargs, **self._own[band]}

    def _stored(self) -> list[int]:
        layers: Any = self._cache.layers
        return [layers[layer].keys.shape[-2] for layer in self._expected.attention]

    def leave(self, output: Any) -> None:
        """The cache that comes out is the one that went in, and holds one token more at every layer."""
        if cache_of(output) is not self._cache:
            self._expected.surprise("The language model returned another cache than it was given")
        if self._stored() != [length + 1 for length in self._before]:
            self._expected.surprise("The cache did not grow by the one token that was fed at every decoder layer")
