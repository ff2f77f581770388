"""Attention masks of shortened sequences, made by transformers' own functions for each layer's own length."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers.cache_utils import Cache
from transformers.masking_utils import LAYER_PATTERN_TO_MASK_FUNCTION_MAPPING, blockwise_overlay, create_causal_mask
from transformers.utils.generic import is_flash_attention_requested

from vlmprune.models.base import Adapter
from vlmprune.runtime.expected import Expected
from vlmprune.runtime.flow import Segment

SLIDING = "sliding_attention"


class Masks:
    """Masks of one forward.

    No decoder layer is left to the text model's own mask: its sliding windows count stored tokens where they should
    count the places these had (flash attention can do no other), it knows nothing of images that see themselves in both
    directions, and whether it took the mask that it was given nobody could tell.
    """

    def __init__(self, adapter: Adapter, expected: Expected, blocks: bool) -> None:
        self.adapter, self.expected, self.blocks = adapter, expected, blocks
        self.flash = is_flash_attention_requested(adapter.text_model.config)

    def make(self, segment: Segment, layer: int, hidden: Tensor, cache: Cache | None) -> Any:
        """The mask for a decoder layer that sees the tokens of `segment`; one for all layers of a kind.

        Args:
            hidden: [B, P, D] as many as the segment has, where the layer itself may be given only the last of them.
        """
        layer = self.adapter.stored_by(layer)
        kind = self.expected.kinds[layer]
        key = ("mask", kind, hidden.device)
        if key not in segment.memo:
            segment.memo[key] = self._make(segment, layer, kind, hidden, cache)
        return segment.memo[key]

    def _make(self, segment: Segment, layer: int, kind: str, hidden: Tensor, cache: Cache | None) -> Any:
        arguments: dict[str, Any] = {
            "config": self.adapter.text_model.config,
            "inputs_embeds": hidden,
            # flash attention is told by the mask alone where a static cache ends
            "attention_mask": segment.valid if self.flash else segment.mask,
            "position_ids": None,
            "layer_idx": layer,  # of those whose keys are read
        }
        two_way = self.blocks and self.adapter.two_way(kind, cache)
        special = kind == SLIDING or (two_way and kind == "full_attention")
        if not special:
            function: Any = LAYER_PATTERN_TO_MASK_FUNCTION_MAPPING.get(kind, create_causal_mask)
            return self.expected.mask(function, cache, arguments)
        length = segment.past.shape[1] + hidden.shape[1]
        if cache is not None:  # a static cache has room for more
            length = max(length, sum(cache.get_mask_sizes(hidden.shape[1], layer)))
        block = None
        if two_way:
            block = nn.functional.pad(segment.layout.block, (segment.past.shape[1], 0), value=-1)
            block = _widen(block, length, hidden)
            arguments["or_mask_function"] = blockwise_overlay(block)
        if kind == SLIDING:
            within = window_overlay(_widen(segment.places, length, hidden), self.adapter.text_config.sliding_window)
            if block is not None and not self.adapter.window_cuts_blocks(cache):
                together, near = blockwise_overlay(block), within
                within = lambda *at: near(*at) | together(*at)  # noqa: E731
            arguments["and_mask_function"] = within
        return self.expected.mask(create_causal_mask, cache, arguments)


def window_overlay(places: Tensor, window: int) -> Any:
    """A query sees the keys that stood fewer than `window` places before it. places: [B, L + P]."""

    def inner(batch: Any, head: Any, query: Any, key: Any) -> Any:
        return places[batch, key] > places[batch, query] - window

    return inner


def _widen(values: Tensor, length: int, hidden: Tensor) -> Tensor:
    return nn.functional.pad(values, (0, length - values.shape[1]), value=-1).to(hidden.device)
