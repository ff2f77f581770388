"""Whether one forward of the text model runs as the runtime takes for granted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from vlmprune.runtime.cache import counts_freely, physical_length
from vlmprune.runtime.expected import MASK, ROTARY, cache_in, same
from vlmprune.runtime.taps import Guard

if TYPE_CHECKING:
    from vlmprune.runtime.forward import Forward


class Watch:
    """Told of each step of a forward, in order; whatever is out of order is a surprise.

    Attributes:
        own: what the runtime gave the decoder layer that runs.
        cache: what that layer got.
    """

    def __init__(self, forward: Forward) -> None:
        self.forward, self.expected = forward, forward.expected
        self.own: dict[str, Any] | None = None
        self.cache: Cache | None = None
        self._next = 0  # decoder layer
        self._attended = -1
        self.turns = 0  # how often the text model made rotary embeddings
        self._aside = False
        self._guard = Guard(self.expected.attention.values(), self.at_function)
        if not torch.compiler.is_compiling():  # the prefill, which is not compiled, is looked at
            self._guard.start()

    def stop(self) -> None:
        self._guard.stop()

    @contextmanager
    def looking_ahead(self) -> Iterator[None]:
        """While the runtime itself runs a part of the model."""
        self._aside = True
        try:
            yield
        finally:
            self._aside = False

    def at_rotary(self, ids: list[Tensor]) -> None:
        """The rotary embedding is made of the position ids that the runtime gave."""
        if self._aside:
            return
        given = self.forward.segments[0].positions
        if not any(_of(given, found) for found in ids):
            self.expected.surprise("The language model made its rotary embedding of other position ids than were given")
        self.turns += 1

    def at_layer(self, number: int, hidden: Tensor, given: dict[str, Any]) -> None:
        """Every decoder layer runs once, in order, on as many tokens as are left."""
        self._attention_ran()
        if number != self._next:
            self.expected.surprise(f"Decoder layer {number} ran where layer {self._next} was due")
        self._next = number + 1
        self.own, self.cache = None, cache_in(given)
        reached = self.forward.segment_of(max(0, number - 1))  # before a stage acts here
        left = (self.forward.batch, self.forward.asking(number, reached))
        if hidden.shape[:2] != left:
            shape, due = (" x ".join(map(str, sizes)) for sizes in (hidden.shape[:2], left))
            self.expected.surprise(f"Decoder layer {number} was given {shape} tokens where {due} are left")
        if not self.forward.changing:
            return
        if not self.turns:
            self.expected.surprise("The language model made no rotary embedding of the position ids it was given")
        if self.cache is not self.forward.cache and self.forward.cache is not None:
            self.expected.surprise(f"Decoder layer {number} was not given the language model's cache")

    def layer_was_known(self, number: int) -> None:
        """What a decoder layer would have made was taken from an earlier run (`runtime.prefill`)."""
        self._attended = number

    def at_attention(self, number: int, given: dict[str, Any]) -> None:
        """The attention of a decoder layer gets the mask, the rotary embedding and the cache that the layer got."""
        if self._aside:
            return
        self._attended = number
        if self.own is None:
            return
        for name, what in ((MASK, "attention mask"), (ROTARY, "rotary embedding")):
            if not same(self.own[name], given.get(name)):
                self.expected.surprise(f"The {what} of decoder layer {number} did not reach its attention")
        if cache_in(given) is not self.cache:
            self.expected.surprise(f"The cache did not reach the attention of decoder layer {number}")

    def at_function(self, module: nn.Module, query: Tensor, key: Tensor, mask: Any) -> None:
        """The attention function gets the layer's mask, its tokens, and what the cache holds before them."""
        if self.own is None:
            return
        segment = self.forward.current
        asking, stored = self.forward.asking(self._attended, segment), segment.layout.source.shape[1]
        if not same(self.own[MASK], mask):
            self.expected.surprise(f"The mask of decoder layer {self._attended} did not reach its attention function")
        known = stored + (segment.past.shape[1] if self.cache is not None else 0)
        whole = self.cache is None or counts_freely(self.cache, self.forward.adapter.stored_by(self._attended))
        if query.shape[2] != asking or (key.shape[2] != known if whole else key.shape[2] < asking):
            self.expected.surprise(
                f"The attention of decoder layer {self._attended} has {query.shape[2]} queries and {key.shape[2]} keys "
                f"where {asking} and {known} are due"
            )

    def at_end(self, cache: Cache | None) -> None:
        """Every layer ran, and the cache that comes out holds what was left at each."""
        self._attention_ran()
        forward, layers = self.forward, len(self.forward.adapter.decoder_layers)
        if self._next != layers and forward.adapter.only_before is None:
            self.expected.surprise(f"The language model ended before decoder layer {self._next}")
        if not forward.changing:
            return
        if self.cache is not None and cache is None:
            self.expected.surprise("The language model returned no cache")
        if cache is None:
            return
        for layer in range(layers):
            segment = forward.segment_of(layer)
            due = segment.past.shape[1] + segment.layout.source.shape[1]
            held = physical_length(cache, layer) if counts_freely(cache, layer) else due
            if layer in self.expected.attention and held != due:
                self.expected.surprise(f"The cache holds {held} tokens at decoder layer {layer} where {due} are due")

    def _attention_ran(self) -> None:
        ran = self._next - 1
        if ran in self.expected.attention and self._attended != ran:
            self.expected.surprise(f"Decoder layer {ran} ran without its attention module being called")


def _of(given: Tensor, found: Tensor) -> bool:
    """Whether ids are those that were given, or some axes of them, perhaps on another device."""
    if torch.compiler.is_compiling():  # storage is not known there; the prefill, which is not compiled, was looked at
        return True
    if found.untyped_storage().data_ptr() == given.untyped_storage().data_ptr():
        return True
    axes = given[-3:] if given.ndim == 3 and found.ndim == 3 and found.shape[0] == 3 else given
    return found.shape[-1] == given.shape[-1] and bool((found.cpu() == axes.cpu()).all())
