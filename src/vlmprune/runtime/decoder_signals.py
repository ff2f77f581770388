"""What a method inside the LLM reads: rows, keys and states of the layer before it, without a second pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vlmprune.core.signals import DecoderKeys, DecoderStates, LastQueryAttention, Need, TextQueryAttention
from vlmprune.core.view import Tokens
from vlmprune.models.base import Adapter
from vlmprune.runtime.flow import Segment
from vlmprune.runtime.taps import AttentionCall
from vlmprune.scores import attention_rows

ATTENTION_NEEDS = (LastQueryAttention, TextQueryAttention, DecoderKeys)


class DecoderReader:
    """Signals at the input of decoder layer K.

    Args:
        segment: the tokens of layer K-1.
        hidden: its output, [B, P, D].
        call: its attention call, where a method reads attention or keys.
        tail: tokens at the end of each row that are not prompt.
    """

    def __init__(
        self, adapter: Adapter, segment: Segment, hidden: Tensor, call: AttentionCall | None, tail: int, layer: int
    ) -> None:
        self.adapter, self.layout, self.hidden, self.call, self.tail = adapter, segment.layout, hidden, call, tail
        self.past, self.valid, self.layer = segment.past.shape[1], segment.valid, layer
        self.device = segment.layout.source.device

    def read(self, need: Need, row: int, tokens: Tensor) -> Any:
        """The signal for one image whose tokens sit at physical indices `tokens` [n] of this row."""
        text = self._text_after(row, tokens)
        if isinstance(need, LastQueryAttention):
            return self._rows(row, self._prompt_tokens(row)[-1:])[0, tokens]
        if isinstance(need, TextQueryAttention):
            return self._rows(row, text)[:, tokens]
        if isinstance(need, DecoderKeys):
            assert self.call is not None
            keys = self.call.key[row, :, self._start :].transpose(0, 1).flatten(1).float().to(self.device)
            return Tokens(keys[tokens], keys[text])
        if isinstance(need, DecoderStates):
            both = torch.cat([tokens, text]).to(self.hidden.device)
            states = self.adapter.final_norm(self.hidden[row, both]).float().to(self.device)
            return Tokens(states[: len(tokens)], states[len(tokens) :])
        raise TypeError(f"unknown need {need!r}")

    def _prompt_tokens(self, row: int) -> Tensor:
        real = self.layout.valid[row].nonzero().squeeze(1)
        return real[: len(real) - self.tail]

    def _text_after(self, row: int, tokens: Tensor) -> Tensor:
        prompt = self._prompt_tokens(row)
        return prompt[(self.layout.image[row, prompt] < 0) & (prompt > tokens.max())]

    @property
    def _start(self) -> int:
        """Where the new tokens' keys begin: a sliding layer stores only the last, a static cache has room behind."""
        assert self.call is not None
        return min(self.past, self.call.key.shape[2] - self.layout.source.shape[1])

    def _rows(self, row: int, queries: Tensor) -> Tensor:
        """Post-softmax rows [R, P] of the new tokens at `queries`, over everything each of them sees."""
        assert self.call is not None
        call, end = self.call, self._start + self.layout.source.shape[1]
        queries = queries.to(call.query.device)
        visible = self._seen(row, queries, end) if call.mask is None else call.mask[row, 0, queries, :end]
        query, key = call.query[row : row + 1, :, queries], call.key[row : row + 1, :, :end]
        rows = attention_rows(query, key, call.scaling, visible[None])
        return rows[0, :, self._start :].to(self.device)

    def _seen(self, row: int, queries: Tensor, end: int) -> Tensor:
        """[R, end] what the kernel lets these queries see where it was given no mask, windows by stored tokens."""
        assert self.call is not None
        stored = torch.arange(end, device=queries.device) + self.past - self._start
        back = self.past + queries[:, None] - stored
        seen = self.valid[row].to(queries.device)[stored].expand_as(back)
        if self.call.causal:
            seen = seen & (back >= 0)
        if self.adapter.layer_kind(self.layer) == "sliding_attention":
            seen = seen & (back.abs() < self.adapter.text_config.sliding_window)
        return seen
