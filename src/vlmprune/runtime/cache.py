"""A key-value cache that remembers what was pruned.

The cache object the user or `generate` holds is given a run-time subclass of its own class with two lengths: logical
(`get_seq_length`: every token ever fed, what `generate` and position code count by) and physical (`get_query_offset`,
`get_mask_sizes`: what is stored, what masks are sized by).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache as memoise
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer, StaticLayer

from vlmprune.core.errors import UserError
from vlmprune.runtime.continuing import Continuation
from vlmprune.runtime.expected import EMBEDS, POSITIONS
from vlmprune.runtime.steady import Steady

_OPEN: set[int] = set()  # id of the text model of every open session


def session_opened(text_model: object) -> None:
    _OPEN.add(id(text_model))


def session_closed(text_model: object) -> None:
    _OPEN.discard(id(text_model))


@dataclass
class Band:
    """Decoder layers from `start` up to the next band: they hold the same tokens.

    Attributes:
        valid: [B, L] which physical slots hold a real token; slots beyond L were decoded since and are all real.
        place: [B, L] their places in the whole sequence, by which sliding windows are measured.
        delta: what to subtract from an incoming position id, [B] or [axes, B]; None for original positions.
        renumbered: [B] rows whose ids were re-numbered; None with `delta`.
        own_positions: ids differ from those of layer 0.
        full: whether all these slots are real; None until somebody asks, as a GPU must be waited for.
    """

    start: int
    valid: Tensor
    place: Tensor
    delta: Tensor | None = None
    renumbered: Tensor | None = None
    own_positions: bool = False
    full: bool | None = None

    @property
    def all_real(self) -> bool:
        """Whether all these slots hold a real token: read once, not at every step of decoding."""
        if self.full is None:
            self.full = bool(self.valid.all())
        return self.full

    def select(self, rows: Tensor) -> Band:
        rows = rows.to(self.valid.device)
        delta, renumbered = (
            None if value is None else value.index_select(-1, rows.to(value.device))
            for value in (self.delta, self.renumbered)
        )
        valid, place = (values.index_select(0, rows) for values in (self.valid, self.place))
        return Band(self.start, valid, place, delta, renumbered, self.own_positions, self.full or None)

    def crop(self, length: int) -> None:
        self.valid, self.place = self.valid[:, :length], self.place[:, :length]
        self.full = self.full or None


@dataclass
class PrunedState:
    """What hangs on an adopted cache.

    Attributes:
        bands: from the first decoder layer on.
        owner: id of the text model, whose hooks the cache needs.
        first: the first decoder layer that stores keys (not a recurrent one), by which lengths are told.
        removed: logical minus physical length of that layer.
        going_on: the position ids with which later tokens may go on behind the last prompt; None where nobody knows.
        steady: what a watched step found out for the next; None where each must be watched.
        plain: the same for steps that are compiled, which a static cache allows (`runtime.compiled`).
    """

    bands: list[Band]
    owner: int
    first: int = 0
    removed: int = 0
    going_on: Continuation | None = None
    steady: Steady | None = None
    plain: Steady | None = None

    def tail(self, cache: Cache) -> int:
        """Tokens added since the bands were written, the same number in all of them; negative if some were removed."""
        band = next(band for band in reversed(self.bands) if band.start <= self.first)
        return physical_length(cache, self.first) - band.valid.shape[1]


class PrunedCacheMixin:
    """What `adopt` puts in front of the cache's own class."""

    vlmprune_state: PrunedState

    def get_seq_length(self, layer_idx: int = 0) -> Any:
        return super().get_seq_length() + self.vlmprune_state.removed  # type: ignore[misc]

    def get_query_offset(self, layer_idx: int = 0) -> Any:
        self._require_session()
        return super().get_seq_length(layer_idx)  # type: ignore[misc]

    def update(self, *args: Any, **kwargs: Any) -> Any:
        self._require_session()
        return super().update(*args, **kwargs)  # type: ignore[misc]

    def crop(self, tokens_to_remove: int) -> None:
        super().crop(tokens_to_remove)  # type: ignore[misc]
        tail = self.vlmprune_state.tail(self)  # type: ignore[arg-type]
        if tail < 0:
            for band in self.vlmprune_state.bands:
                band.crop(band.valid.shape[1] + tail)

    def reset(self) -> None:
        super().reset()  # type: ignore[misc]
        release(self)  # type: ignore[arg-type]

    def reorder_cache(self, beam_idx: Tensor) -> None:
        super().reorder_cache(beam_idx)  # type: ignore[misc]
        self._select(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)  # type: ignore[misc]
        rows = self.vlmprune_state.bands[0].valid.shape[0]
        self._select(torch.arange(rows).repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)  # type: ignore[misc]
        self._select(indices)

    def _select(self, rows: Tensor) -> None:
        state = self.vlmprune_state
        state.bands = [band.select(rows) for band in state.bands]
        if state.going_on is not None:
            state.going_on = state.going_on.select(rows)
        if state.steady is not None:
            state.steady = state.steady.select(rows)
        if state.plain is not None:
            state.plain = state.plain.select(rows)

    def _require_session(self) -> None:
        if self.vlmprune_state.owner not in _OPEN:
            raise UserError(
                "This cache was pruned by vlmprune.prune(...): use it inside such a context, or start with a new cache."
            )


@memoise
def _pruned_class(cls: type) -> type:
    return type(f"Pruned{cls.__name__}", (PrunedCacheMixin, cls), {"__module__": __name__})


def adopt(cache: Cache, state: PrunedState) -> None:
    """Attach `state`; `isinstance(cache, its old class)` stays true, and a deepcopy carries the state along."""
    if state_of(cache) is None:
        cache.__class__ = _pruned_class(type(cache))  # type: ignore[arg-type]
    cache.vlmprune_state = state  # type: ignore[attr-defined]
    cache.vlmprune_whole = False  # type: ignore[attr-defined]


def release(cache: Cache) -> None:
    """Back to the class the cache had."""
    if state_of(cache) is not None:
        del cache.vlmprune_state, cache.vlmprune_whole  # type: ignore[attr-defined]
        cache.__class__ = type(cache).__mro__[2]


def state_of(cache: Cache | None) -> PrunedState | None:
    return getattr(cache, "vlmprune_state", None)


def going_on_of(cache: Cache | None) -> Continuation | None:
    """How position ids go on behind the last prompt in a cache; None where no session saw one."""
    state = state_of(cache)
    return getattr(cache, "vlmprune_going_on", None) if state is None else state.going_on


def mark_whole(cache: Cache | None, going_on: Continuation | None = None) -> None:
    """Note that a cache holds every token that it was fed: a session saw them.

    Args:
        going_on: how position ids go on behind the prompt that was fed last; None where that had no images.
    """
    if cache is not None:
        cache.vlmprune_whole = True  # type: ignore[attr-defined]
        if going_on is not None:
            cache.vlmprune_going_on = going_on  # type: ignore[attr-defined]


def is_whole(cache: Cache) -> bool:
    """Whether a cache is known to hold every token: it is empty, or a session saw it being filled."""
    return getattr(cache, "vlmprune_whole", False) or not bool(cache.get_seq_length())


def check_unknown(cache: Cache, layers: Iterable[int], given: dict[str, Any], mask: Tensor | None) -> str | None:
    """What speaks against taking a filled cache that no session saw being filled for a whole one; None if nothing does.

    It may have been filled outside a session; or it is what somebody made of a pruned one, without its state.

    Args:
        layers: the decoder layers that store keys.
        given: what the text model is called with.
        mask: [B, past + S], where there is one.
    """
    stored = lengths(cache, layers) or {int(cache.get_seq_length())}
    new, positions = given[EMBEDS].shape[1] if given.get(EMBEDS) is not None else 1, given.get(POSITIONS)
    held = f"A cache that vlmprune did not see being filled holds {max(stored)} tokens"
    if len(stored) > 1:
        return f"{held} at one decoder layer and {min(stored)} at another"
    after = max(stored) + new
    if mask is not None:
        return None if mask.shape[1] == after else f"{held}, and the attention mask counts {mask.shape[1] - new}"
    if positions is not None and (positions.ndim == 2 or positions.shape[0] == 4):
        last = int((positions if positions.ndim == 2 else positions[0])[:, -1].max()) + 1
        return None if last == after else f"{held}, and the position ids go on behind {last - new}"
    return f"{held}, and nothing tells whether these are all (pass attention_mask, or fill it in the same block)"


def lengths(cache: Cache, layers: Iterable[int]) -> set[int]:
    """Tokens stored at these decoder layers, of those whose length is told without asking the device."""
    return {physical_length(cache, layer) for layer in layers if counts_freely(cache, layer)}


def counts_freely(cache: Cache, layer: int) -> bool:
    """Whether a decoder layer of the cache keeps all that it is given, and its length is a number on the host."""
    return layer < len(cache.layers) and type(cache.layers[layer]) is DynamicLayer


def physical_length(cache: Cache | None, layer: int) -> int:
    """Tokens stored at a decoder layer."""
    if cache is None or layer >= len(cache.layers):
        return 0
    return int(cache.layers[layer].get_seq_length())  # type: ignore[union-attr]


def can_trim(cache: Cache, layer: int) -> bool:
    """Whether tokens can be taken out of what a decoder layer stores: not where it keeps a window, or quantised."""
    return layer < len(cache.layers) and type(cache.layers[layer]) in (DynamicLayer, StaticLayer)


def trim(cache: Cache, layer: int, past: int, index: Tensor) -> None:
    """Keep the first `past` tokens stored at a decoder layer and, of those behind, the ones at `index` [B, P]."""
    stored: Any = cache.layers[layer]
    before = torch.arange(past, device=index.device).expand(len(index), -1)
    taken = torch.cat([before, index + past], dim=1).to(stored.keys.device)[:, None, :, None]
    for name in ("keys", "values"):
        values = getattr(stored, name)
        kept = values.gather(2, taken.expand(-1, values.shape[1], -1, values.shape[3]))
        if isinstance(stored, StaticLayer):  # its address must stay
            values[:, :, : kept.shape[2]] = kept
        else:
            setattr(stored, name, kept)
    if isinstance(stored, StaticLayer):
        stored.cumulative_length.fill_(taken.shape[2])
