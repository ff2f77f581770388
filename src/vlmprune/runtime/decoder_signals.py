"""What a method inside the LLM reads: rows, keys and states of the layer before it, without a second pass."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from vlmprune.core.errors import UserError
from vlmprune.core.signals import (
    DecoderKeys,
    DecoderStates,
    EnteredEmbeddings,
    HiddenStates,
    LastQueryAttention,
    LayerInput,
    MlpInput,
    Need,
    RotaryGain,
    TextQueryAttention,
    TextSelfAttention,
    VisualQueryAttention,
)
from vlmprune.core.view import Tokens
from vlmprune.models.base import Adapter
from vlmprune.runtime.expected import CACHE, cache_in
from vlmprune.runtime.flow import Segment
from vlmprune.runtime.taps import AttentionCall, Capture, ahead
from vlmprune.scores import attention_rows

ATTENTION_NEEDS = (
    LastQueryAttention, TextQueryAttention, VisualQueryAttention, TextSelfAttention, DecoderKeys, RotaryGain,
)  # fmt: skip


def check_readable(adapter: Adapter, layer: int, needs: Iterable[Need]) -> None:
    """Raise UserError where a method that acts before `layer` reads what the layer before it does not have."""
    for need in needs:
        if isinstance(need, ATTENTION_NEEDS):
            adapter.decoder_attention(layer if getattr(need, "ahead", False) else layer - 1)
        elif isinstance(need, MlpInput) and not hasattr(adapter.decoder_layers[layer - 1], "mlp"):
            raise UserError(
                f"vlmprune does not find the MLP of decoder layer {layer - 1} of this model, and the method reads it: "
                "choose another method."
            )


class LayerTap:
    """What is noted of one decoder layer while it runs, for a method that acts before the next one."""

    def __init__(self, adapter: Adapter, layer: int, needs: list[Need], hidden: Tensor) -> None:
        self.layer = layer
        self.rotary: tuple[Tensor, Tensor] | None = None  # cos and sin that the layer was called with
        self.input = hidden if any(isinstance(need, LayerInput) for need in needs) else None
        self.mlp_input: Tensor | None = None
        self._capture: Capture | None = None
        self._handle: Any = None
        if any(isinstance(need, ATTENTION_NEEDS) and not getattr(need, "ahead", False) for need in needs):
            self._capture = Capture([adapter.decoder_attention(layer)])
            self._capture.start()
        if any(isinstance(need, MlpInput) for need in needs):
            module: Any = adapter.decoder_layers[layer]
            self._handle = module.mlp.register_forward_pre_hook(self._note_mlp)

    def _note_mlp(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self.mlp_input = args[0]

    @property
    def reads_attention(self) -> bool:
        return self._capture is not None

    @property
    def call(self) -> AttentionCall | None:
        calls = [] if self._capture is None else next(iter(self._capture.calls.values()))
        return calls[0] if calls else None

    def stop(self) -> None:
        if self._capture is not None:
            self._capture.stop()
        if self._handle is not None:
            self._handle.remove()


def call_ahead(adapter: Adapter, layer: int, given: dict[str, Any], past: int) -> AttentionCall:
    """What the attention call of a decoder layer that is still to run would see of these tokens.

    Args:
        given: what the layer will be called with.
        past: tokens that the cache holds there; it is read, and nothing is written to it.
    """
    attention, cache, module = adapter.decoder_attention(layer), cache_in(given), adapter.decoder_layers[layer]
    without = {**given, **{name: None for name in CACHE if name in given}}
    # `forward`, for calling the layer would run the session's hook on it once more
    call = ahead(attention, lambda: module.forward(**without))
    if past and cache is not None:
        stored: Any = cache.layers[layer]
        call.key = torch.cat([stored.keys[:, :, :past], call.key], dim=2)
    return call


class DecoderReader:
    """Signals at the input of decoder layer K.

    Args:
        segment: the tokens of layer K-1.
        hidden: its output, [B, P, D].
        tap: what was noted of it.
        tail: tokens at the end of each row that are not prompt.
        ahead: the tokens of layer K, as many, and the attention call that it would make of them, where a method looks
            ahead.
        entered: of what entered layer 0, the images' numbers [B, P] and the embeddings [B, P, D].
    """

    def __init__(
        self,
        adapter: Adapter,
        segment: Segment,
        hidden: Tensor,
        tap: LayerTap | None,
        tail: int,
        layer: int,
        ahead: tuple[Segment, AttentionCall] | None = None,
        entered: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        self.adapter, self.layout, self.hidden, self.tap, self.tail = adapter, segment.layout, hidden, tap, tail
        self.call, self.ahead = None if tap is None else tap.call, ahead
        self.segment, self.layer, self.entered = segment, layer, entered
        self.device = segment.layout.source.device

    def read(self, need: Need, row: int, tokens: Tensor) -> Any:
        """The signal for one image whose tokens sit at physical indices `tokens` [n] of this row."""
        text = self._text_after(row, tokens)
        if isinstance(need, LastQueryAttention):
            last = self._prompt_tokens(row)[-1:]
            return self._rows(row, last, ahead=need.ahead)[0, tokens]
        if isinstance(need, TextQueryAttention):
            return self._rows(row, text, need.heads)[..., tokens]
        if isinstance(need, VisualQueryAttention):
            return self._rows(row, tokens, need.heads)[:, tokens].mean(0)
        if isinstance(need, TextSelfAttention):
            return self._rows(row, text, "all")[..., text]
        if isinstance(need, DecoderKeys):
            assert self.call is not None
            start = first_new(self.call, self.segment)
            keys = self.call.key[row, :, start:].transpose(0, 1).flatten(1).float().to(self.device)
            return Tokens(keys[tokens], keys[text])
        if isinstance(need, RotaryGain):
            return self._gain(row, text, tokens)
        if isinstance(need, EnteredEmbeddings):
            assert self.entered is not None
            images, embeds = self.entered
            own = images[row] == self.layout.image[row, tokens[0]]
            return embeds[row, own.to(embeds.device)].float().to(self.device)
        if isinstance(need, LayerInput | MlpInput):
            assert self.tap is not None
            states = self.tap.input if isinstance(need, LayerInput) else self.tap.mlp_input
            assert states is not None
            return states[row, tokens.to(states.device)].float().to(self.device)
        if isinstance(need, DecoderStates | HiddenStates):
            both = torch.cat([tokens, text]).to(self.hidden.device)
            states = self.hidden[row, both]
            if isinstance(need, DecoderStates):
                final = need.norm == "final"
                states = (self.adapter.final_norm if final else self.adapter.first_norm(self.layer + 1))(states)
            states = states.float().to(self.device)
            return Tokens(states[: len(tokens)], states[len(tokens) :])
        raise TypeError(f"unknown need {need!r}")

    def _prompt_tokens(self, row: int) -> Tensor:
        real = self.layout.valid[row].nonzero().squeeze(1)
        return real[: len(real) - self.tail]

    def _text_after(self, row: int, tokens: Tensor) -> Tensor:
        prompt = self._prompt_tokens(row)
        return prompt[(self.layout.image[row, prompt] < 0) & (prompt > tokens.max())]

    def _gain(self, row: int, queries: Tensor, keys: Tensor) -> Tensor:
        call = self.call
        assert call is not None and self.tap is not None and self.tap.rotary is not None
        cos, sin = (turn[row if len(turn) > 1 else 0].float().to(self.device) for turn in self.tap.rotary)
        half = cos.shape[-1] // 2
        ones = torch.cat([(cos - sin)[:, :half], (cos + sin)[:, half:]], dim=1)
        still = call.query.shape[-1] - 2 * half  # dimensions that are not rotated
        return call.scaling * (ones[queries] @ ones[keys].T + still)

    def _rows(self, row: int, queries: Tensor, heads: str = "mean", ahead: bool = False) -> Tensor:
        """Post-softmax rows [R, P] (all heads: [H, R, P]) of the new tokens at `queries`, over all that each sees."""
        segment, call = self.ahead if ahead and self.ahead is not None else (self.segment, self.call)
        assert call is not None
        start = first_new(call, segment)
        queries = queries.to(call.query.device)
        visible = seen_keys(self.adapter, segment, call, row, queries, self.layer + ahead)
        query, key = call.query[row : row + 1, :, queries], call.key[row : row + 1, :, : visible.shape[1]]
        rows = attention_rows(query, key, call.scaling, visible[None], heads, call.softcap, call.sinks)
        return rows[0, ..., start:].to(self.device)


def first_new(call: AttentionCall, segment: Segment) -> int:
    """Where the new tokens' keys begin: a sliding layer stores only the last, a static cache has room behind."""
    return min(segment.past.shape[1], call.key.shape[2] - segment.layout.source.shape[1])


def seen_keys(adapter: Adapter, segment: Segment, call: AttentionCall, row: int, queries: Tensor, layer: int) -> Tensor:
    """[R, S] what the kernel of a decoder layer lets these new tokens see, up to the last one's own key.

    Where it was given no mask: what is real, not later, and within a sliding window by stored tokens.
    """
    past, begin = segment.past.shape[1], first_new(call, segment)
    end = begin + segment.layout.source.shape[1]
    if call.mask is not None:
        return call.mask[row, 0, queries, :end]
    stored = torch.arange(end, device=queries.device) + past - begin
    back = past + queries[:, None] - stored
    seen = segment.valid[row].to(queries.device)[stored].expand_as(back)
    if call.causal:
        seen = seen & (back >= 0)
    if adapter.layer_kind(layer) == "sliding_attention":
        seen = seen & (back.abs() < adapter.text_config.sliding_window)
    return seen
