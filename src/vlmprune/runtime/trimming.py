"""Caches of layers before the last cut, shortened to what it left, for methods whose decoding sees less."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from torch import Tensor
from transformers.cache_utils import Cache

from vlmprune.core.act import Act
from vlmprune.models.base import Adapter
from vlmprune.runtime.cache import can_trim, trim
from vlmprune.runtime.flow import Segment


class Cut(NamedTuple):
    """A cut inside the LLM.

    Attributes:
        number: the decoder layer before which it was made.
        taken, valid: [B, P] where the tokens it left stood among those that reached it, and which are real.
    """

    number: int
    taken: Tensor
    valid: Tensor


def trim_caches(
    cache: Cache, adapter: Adapter, segments: Sequence[Segment], acts: Mapping[int, Act], cuts: Sequence[Cut]
) -> tuple[list[Segment], dict[int, int]]:
    """Let the layers from before the first act that trims caches keep only what the last of these acts left.

    These are the layers from the one that the act reads, or from layer 0 if its method says so.

    Args:
        cuts: all that were made, in order, those of other stages too: they shorten what the next one counts among.

    Returns:
        The segments as they are stored then, and for each layer that was shortened the cut whose tokens it keeps.
    """
    trimming = {number for number, act in acts.items() if act.method.trims_cache}
    last = max((at for at, cut in enumerate(cuts) if cut.number in trimming), default=None)
    if last is None:
        return list(segments), {}
    cuts = cuts[: last + 1]
    begin = min(0 if acts[number].method.trims_first_layers else number - 1 for number in trimming)
    end, valid = cuts[-1].number, cuts[-1].valid
    stored: list[Segment] = []
    trimmed: dict[int, int] = {}
    previous: tuple[Segment, bool] | None = None
    for layer in range(len(adapter.decoder_layers)):
        segment = next(segment for segment in reversed(segments) if segment.start <= layer)
        cut = begin <= layer < end and can_trim(cache, layer)
        index = _left(layer, cuts) if cut else None
        if index is not None:
            trim(cache, layer, segment.past.shape[1], index)
            trimmed[layer] = end
        if previous is None or previous[0] is not segment or previous[1] != cut:
            own = replace(segment, start=layer, memo={})
            if index is not None:
                own.layout, own.full = segment.layout.take(index, valid), None
            stored.append(own)
        previous = segment, cut
    return stored, trimmed


def _left(layer: int, cuts: Sequence[Cut]) -> Tensor:
    """[B, P] where the tokens that the last of these cuts left stand among those of a layer before it."""
    index, *earlier = [cut.taken for cut in reversed(cuts) if cut.number > layer]
    for among in earlier:
        index = among.gather(1, index)
    return index
