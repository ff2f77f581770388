"""The first decoder layers of one prompt, run once for several sessions that leave them as they are."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers.cache_utils import Cache

from vlmprune.models.base import Adapter
from vlmprune.runtime.attributes import Attachments, put
from vlmprune.runtime.decoder_reading import READ_IN_LAYER, taps_of
from vlmprune.runtime.expected import HIDDEN, ROTARY, cache_in, interface, same

if TYPE_CHECKING:
    from vlmprune.runtime.text import Running, TextHooks


def untouched(hooks: TextHooks) -> int:
    """How many of the first decoder layers a session neither changes nor looks into, on any prompt."""
    stored = next((n for n, layer in enumerate(hooks.adapter.attention_layers) if n != layer), None)
    most = len(hooks.adapter.attention_layers) if stored is None else stored  # a recurrent layer keeps other states
    if hooks.before_llm:
        return 0
    sharing = range(hooks.adapter.first_sharing, len(hooks.adapter.decoder_layers))
    most = min([most, *map(hooks.adapter.stored_by, sharing)])  # what these store is read within one forward
    looked_into = {act - bool(taps_of(hooks.at_layer[act].needs.values()) & READ_IN_LAYER) for act in hooks.at_layer}
    return min([most, *looked_into, *hooks.fused])


@dataclass
class SharedPrefill:
    """What the first decoder layers made of one batch of prompts, for the sessions whose `share` gets it.

    The first session that runs leaves it here, and each later one that is given the same prompts takes it over as far
    as it leaves these layers alone. It is told by what enters the first layer: other prompts run as always.
    Sessions of one model, whose weights do not change meanwhile.

    Attributes:
        depth: how many layers to keep. Each costs the memory of its output and of its keys and values.
        taken: layers that did not have to run so far, of all sessions together.
    """

    depth: int
    taken: int = 0
    _given: tuple[Any, ...] = ()  # what entered layer 0
    _outputs: list[Any] = field(default_factory=list)  # by layer
    _stored: list[tuple[tuple[Any, ...], dict[str, Any]]] = field(default_factory=list)  # calls of the cache's `update`

    def install(self, attached: Attachments, adapter: Adapter, running: Callable[[], Running], layers: int) -> None:
        """Stand before the forwards of a session's first `layers` decoder layers."""
        for number, layer in enumerate(adapter.decoder_layers[: min(layers, self.depth)]):
            attached.put(layer, "forward", self._standing_before(layer, number, running))

    def _standing_before(self, layer: nn.Module, number: int, running: Callable[[], Running]) -> Any:
        original = layer.forward

        @functools.wraps(original)
        def forward(*args: Any, **kwargs: Any) -> Any:
            now = running()
            given = interface(original).named(args, kwargs)
            if not _prefills(now, given):
                return original(*args, **kwargs)
            assert now.forward is not None
            if number == 0:
                assert now.forward.prompt is not None
                self_seeing = now.forward.prompt.blocks  # which tokens see each other in both directions
                now.forward.shares = self._meets((now.forward.new_valid, self_seeing, given[HIDDEN], given[ROTARY]))
            if not now.forward.shares:
                return original(*args, **kwargs)
            if number < len(self._outputs):
                now.forward.watch.layer_was_known(number)
                return self._take(number, cache_in(given))
            with _noting(cache_in(given)) as calls:
                output = original(*args, **kwargs)
            if number == len(self._outputs) and len(calls) == 1:
                self._stored += calls
                self._outputs.append(_copied(output))
            return output

        return forward

    def _meets(self, entering: tuple[Any, ...]) -> bool:
        """Whether this is the prompt that is kept, or the first to be kept."""
        if not self._outputs:
            self._given = entering
        return same(self._given, entering)

    def _take(self, number: int, cache: Any) -> Any:
        args, kwargs = self._stored[number]
        cache.update(*args, **kwargs)
        self.taken += 1
        return _copied(self._outputs[number])


def _prefills(now: Running, given: dict[str, Any]) -> bool:
    """Whether this is a prefill into an empty cache, of which nobody asks for more than the hidden states."""
    forward, cache = now.forward, cache_in(given)
    if forward is None or forward.prompt is None or cache is None or torch.is_grad_enabled():
        return False
    return not forward.past_places and not forward.recorded


def _copied(output: Any) -> Any:
    """A copy, as models add to their hidden states in place."""
    return tuple(map(_copied, output)) if isinstance(output, tuple) else output.clone()


@contextmanager
def _noting(cache: Cache | None) -> Iterator[list[tuple[tuple[Any, ...], dict[str, Any]]]]:
    """The calls of a cache's `update` inside the block."""
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    update: Any = cache.update if cache is not None else None

    def noting(*args: Any, **kwargs: Any) -> Any:
        calls.append((args, kwargs))
        return update(*args, **kwargs)

    undo = put(cache, "update", noting)
    try:
        yield calls
    finally:
        undo()
