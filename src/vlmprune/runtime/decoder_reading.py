"""What a method inside the LLM reads: rows, keys and states of the layer before it, without a second pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vlmprune.core.errors import UserError
from vlmprune.core.needs import DecoderNeed, Need
from vlmprune.models.base import Adapter, Turned
from vlmprune.runtime.expected import CACHE, cache_in
from vlmprune.runtime.flow import Segment
from vlmprune.runtime.taps import AttentionCall, Capture, ahead
from vlmprune.scores import attention_rows


def taps_of(needs: Iterable[Need]) -> set[str]:
    """What must be noted of a decoder layer, or looked at ahead, for these needs."""
    return {tap for need in needs if isinstance(need, DecoderNeed) for tap in need.taps}


def check_readable(adapter: Adapter, layer: int, needs: Iterable[Need]) -> None:
    """Raise UserError where a method that acts before `layer` reads what the layer before it does not have."""
    taps = taps_of(needs)
    if unknown := taps - {*NOTED, "attention", "ahead", "input", "own_output", "output"}:
        raise TypeError(f"no such tap: {', '.join(sorted(unknown))}")
    if taps & {"attention", "attention_output"}:
        adapter.decoder_attention(layer - 1)
    if "ahead" in taps:
        adapter.decoder_attention(layer)
    if taps & {"mlp_input", "mlp_output"} and adapter.mlp(layer - 1) is None:
        raise UserError(
            f"vlmprune does not find the MLP of decoder layer {layer - 1} of this model, and the method reads it: "
            "choose another method."
        )


NOTED = ("attention_output", "mlp_input", "mlp_output")  # by hooks on parts of the layer
READ_IN_LAYER = {"attention", *NOTED}  # what a layer has to run for


class LayerTap:
    """What is noted of one decoder layer while it runs, for a method that acts before the next one."""

    def __init__(self, adapter: Adapter, layer: int, needs: Iterable[Need], hidden: Tensor) -> None:
        taps = taps_of(needs)
        self.layer = layer
        self.shape = hidden.shape
        self.rotary: Turned | None = None  # that the layer was called with
        self.noted: dict[str, Tensor] = {"input": hidden} if "input" in taps else {}  # [B, P, D] by tap
        self._capture: Capture | None = None
        self._handles: list[Any] = []
        if "attention" in taps:
            self._capture = Capture([adapter.decoder_attention(layer)])
            self._capture.start()
        module: Any = adapter.decoder_layers[layer]
        mlp: Any = adapter.mlp(layer)
        if "mlp_input" in taps:
            self._handles.append(mlp.register_forward_pre_hook(self._note_input))
        if "mlp_output" in taps:
            self._handles.append(mlp.register_forward_hook(self._noter("mlp_output")))
        if "own_output" in taps:
            self._handles.append(module.register_forward_hook(self._noter("own_output")))
        if "attention_output" in taps:
            attention = adapter.decoder_attention(layer)
            self._handles.append(attention.register_forward_hook(self._noter("attention_output")))

    def _note_input(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self.noted["mlp_input"] = args[0]

    def _noter(self, tap: str) -> Callable[..., None]:
        def note(module: nn.Module, args: Any, output: Any) -> None:
            rows = output[0] if isinstance(output, tuple) else output
            self.noted[tap] = rows.reshape(self.shape)  # Llama 4's experts return the tokens of all samples in a row

        return note

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
        for handle in self._handles:
            handle.remove()


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
        pairs = [(stored.keys, call.key), (stored.values, call.value)]
        if any((old.shape[1], old.shape[-1]) != (new.shape[1], new.shape[-1]) for old, new in pairs):
            raise UserError(
                f"The cache of this {adapter.family} does not store the keys that attention reads, so a method that "
                "looks ahead cannot act behind one: begin a new cache for the new image, or choose another method."
            )
        call.key, call.value = (torch.cat([old[:, :, :past], new], dim=2) for old, new in pairs)
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

    def at(self, row: int, tokens: Tensor, end: Tensor) -> ImageAtLayer:
        """One image whose tokens sit at physical indices `tokens` [n] of this row.

        Args:
            end: [] column of the image's last slot. Text between its slots, such as the times of a video's frames, is
                not behind it, even if no slot that follows such text is left.
        """
        prompt = self._prompt_tokens(row)
        text = prompt[(self.layout.image[row, prompt] < 0) & (self.layout.source[row, prompt] > end)]
        return ImageAtLayer(self, row, tokens, text, prompt[-1:])

    def _prompt_tokens(self, row: int) -> Tensor:
        real = self.layout.valid[row].nonzero().squeeze(1)
        return real[: len(real) - self.tail]

    def noted(self, tap: str) -> Tensor:
        """[B, P, D] what was noted while the layer ran."""
        if self.tap is None or tap not in self.tap.noted:
            raise RuntimeError(f"A need reads {tap!r} of a decoder layer without naming it in its taps")
        return self.tap.noted[tap]

    def called(self, ahead: bool = False) -> tuple[Segment, AttentionCall]:
        """The attention call of the layer, or the one that the next layer would make, and the tokens it is about."""
        if ahead:
            if self.ahead is None:
                raise RuntimeError("A need looks ahead without naming 'ahead' in its taps")
            return self.ahead
        if self.call is None:
            raise RuntimeError("A need reads attention of a decoder layer without naming 'attention' in its taps")
        return self.segment, self.call


@dataclass
class ImageAtLayer:
    """One image at a decoder layer (`core.needs.DecoderReading`). Tokens are physical indices in its row."""

    reader: DecoderReader
    row: int
    image: Tensor
    text: Tensor
    last: Tensor

    def attention(self, queries: Tensor, heads: str = "mean", ahead: bool = False) -> Tensor:
        segment, call = self.reader.called(ahead)
        start, row = first_new(call, segment), self.row
        queries = queries.to(call.query.device)
        visible = seen_keys(self.reader.adapter, segment, call, row, queries, self.reader.layer + ahead)
        query, key = call.query[row : row + 1, :, queries], call.key[row : row + 1, :, : visible.shape[1]]
        rows = attention_rows(query, key, call.scaling, visible[None], heads, call.softcap, call.sinks)
        return rows[0, ..., start:].to(self.reader.device)

    def keys(self, tokens: Tensor, joined: bool = True, ahead: bool = False) -> Tensor:
        heads = self._stored("key", tokens, ahead)
        return heads.flatten(1) if joined else heads.mean(1)

    def values(self, tokens: Tensor) -> Tensor:
        return self._stored("value", tokens).flatten(1)

    def _stored(self, part: str, tokens: Tensor, ahead: bool = False) -> Tensor:
        """[R, KV heads, head_dim]."""
        segment, call = self.reader.called(ahead)
        rows = getattr(call, part)[self.row, :, first_new(call, segment) :]
        return self._float(rows[:, tokens.to(rows.device)].transpose(0, 1))

    def rotary_gain(self, queries: Tensor, keys: Tensor) -> Tensor:
        _, call = self.reader.called()
        if not self.reader.adapter.turns(self.reader.layer):
            size = len(queries), len(keys)
            return torch.full(size, call.scaling * call.query.shape[-1], device=self.reader.device)
        assert self.reader.tap is not None and self.reader.tap.rotary is not None
        turned = _cos_and_sin(self.reader.tap.rotary)
        cos, sin = (self._float(turn[self.row if len(turn) > 1 else 0]) for turn in turned)
        half = cos.shape[-1] // 2
        ones = torch.cat([(cos - sin)[:, :half], (cos + sin)[:, half:]], dim=1)
        still = call.query.shape[-1] - 2 * half  # dimensions that are not rotated
        return call.scaling * (ones[queries] @ ones[keys].T + still)

    def layer_input(self, tokens: Tensor) -> Tensor:
        return self._rows(self.reader.noted("input"), tokens)

    def attention_output(self, tokens: Tensor) -> Tensor:
        return self._rows(self.reader.noted("attention_output"), tokens)

    def mlp_input(self, tokens: Tensor) -> Tensor:
        return self._rows(self.reader.noted("mlp_input"), tokens)

    def mlp_output(self, tokens: Tensor) -> Tensor:
        return self._rows(self.reader.noted("mlp_output"), tokens)

    def own_output(self, tokens: Tensor) -> Tensor:
        return self._rows(self.reader.noted("own_output"), tokens)

    def layer_output(self, tokens: Tensor, norm: str | None = None) -> Tensor:
        states = self.reader.hidden[self.row, tokens.to(self.reader.hidden.device)]
        if norm is not None:
            adapter = self.reader.adapter
            states = (adapter.final_norm if norm == "final" else adapter.first_norm(self.reader.layer + 1))(states)
        return self._float(states)

    def entered(self) -> Tensor:
        assert self.reader.entered is not None
        images, embeds = self.reader.entered
        own = images[self.row] == self.reader.layout.image[self.row, self.image[0]]
        return self._float(embeds[self.row, own.to(embeds.device)])

    def _rows(self, states: Tensor, tokens: Tensor) -> Tensor:
        return self._float(states[self.row, tokens.to(states.device)])

    def _float(self, rows: Tensor) -> Tensor:
        return rows.float().to(self.reader.device)


def _cos_and_sin(turned: Turned) -> tuple[Tensor, Tensor]:
    """Both [B or 1, P, d], each frequency in either half."""
    if not isinstance(turned, Tensor):
        return turned
    cos, sin = (torch.cat([part, part], dim=-1) for part in (turned.real, turned.imag))
    return cos, sin


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
