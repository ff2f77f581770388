"""Reading queries and keys where transformers calls attention, with the attention kernel left as it is.

The entry of the current implementation in transformers' attention interface is wrapped under its own name (a new name
would lose its mask function), and only while a forward that is to be read is running.
"""

from __future__ import annotations

import inspect
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS


@dataclass
class AttentionCall:
    """What one attention call saw.

    Attributes:
        query, key, value: [B, H, R, d], [B, Hkv, S, d] and [B, Hkv, S, dv], after rotary embedding and normalisation.
        scaling: factor on the logits.
        mask: [B, 1 or H, R, S] which keys each query sees, or None where the kernel was given no such mask (flash
            attention is told what is padding, not this).
        causal: whether the kernel then hides later keys.
        softcap: c of logits that are capped as c tanh(logit / c), or None.
        sinks: [H] a logit of each head that takes its share of every row and belongs to no key, or None.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    scaling: float
    mask: Tensor | None = None
    causal: bool = False
    softcap: float | None = None
    sinks: Tensor | None = None

    def visible(self, start: int, end: int) -> Tensor | None:
        """[B, end - start, S] what these queries see, or None."""
        return None if self.mask is None else self.mask[:, 0, start:end, : self.key.shape[2]]

    @property
    def real(self) -> Tensor | None:
        """[B, S] the keys that are not padding, where an encoder masks some; else None."""
        return None if self.mask is None else self.mask[:, 0].any(1)


def joined_heads(call: AttentionCall) -> AttentionCall:
    """The call as if all heads were one, its logits over the root of their common width."""
    query, key, value = (rows.transpose(1, 2).flatten(2)[:, None] for rows in (call.query, call.key, call.value))
    return AttentionCall(query, key, value, query.shape[-1] ** -0.5, call.mask)


def cls_first(call: AttentionCall) -> AttentionCall:
    """The call of an encoder without a mask, its last token before all others."""
    query, key, value = (rows.roll(1, dims=2) for rows in (call.query, call.key, call.value))
    return AttentionCall(query, key, value, call.scaling)


_WRAPPED: dict[str, int] = {}  # implementation name -> running captures, so that nested captures unwrap once
_WRAPPING = threading.Lock()


class _Enough(Exception):
    """Ends a forward once the call of its attention module was noted."""


Correct = Callable[[AttentionCall, Tensor], Tensor]  # of a call and its output, the output that counts
Check = Callable[[nn.Module, Tensor, Tensor, Any], None]  # of the module, its query, key and mask


class _Taps(threading.local):
    """What one thread reads and corrects: a model may run in several at once."""

    def __init__(self) -> None:
        self.watched: dict[nn.Module, list[AttentionCall]] = {}
        self.edited: dict[nn.Module, Correct] = {}
        self.guarded: dict[nn.Module, Check] = {}
        self.enough: set[nn.Module] = set()


_TAPS = _Taps()


def ahead(module: nn.Module, run: Callable[[], Any]) -> AttentionCall:
    """The call that an attention module makes inside `run`, which ends there: its projections, and nothing more."""
    tap = Capture([module])
    tap.start()
    _TAPS.enough.add(module)
    try:
        run()
    except _Enough:
        pass
    finally:
        _TAPS.enough.discard(module)
        tap.stop()
    return tap.calls[module][0]


@contextmanager
def capture(modules: Iterable[nn.Module]) -> Iterator[dict[nn.Module, list[AttentionCall]]]:
    """Collect the attention calls of `modules` made inside the block, in order."""
    tap = Capture(modules)
    tap.start()
    try:
        yield tap.calls
    finally:
        tap.stop()


class Capture:
    """The same for a forward that begins and ends in different hooks. `stop` may be called any number of times."""

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        self.calls: dict[nn.Module, list[AttentionCall]] = {module: [] for module in modules}
        self._names: list[str] = []

    def start(self) -> None:
        _TAPS.watched.update(self.calls)
        self._names += _wrap_all(self.calls)

    def stop(self) -> None:
        for module in self.calls:
            _TAPS.watched.pop(module, None)
        while self._names:
            _unwrap(self._names.pop())


class Edit:
    """Corrects what the attention calls of one module return, whatever kernel made it.

    Args:
        correct: of a call and its output [B, R, H, dv], makes the output that counts.
    """

    def __init__(self, module: nn.Module, correct: Correct) -> None:
        self._module, self._correct, self._name = module, correct, ""

    def start(self) -> None:
        config: Any = self._module.config
        self._name = config._attn_implementation
        _TAPS.edited[self._module] = self._correct
        _wrap(self._name)

    def stop(self) -> None:
        """May be called any number of times."""
        if self._name:
            _TAPS.edited.pop(self._module, None)
            _unwrap(self._name)
            self._name = ""


class Guard:
    """Shows to `check` what the attention calls of these modules are made with, from `start` to `stop`."""

    def __init__(self, modules: Iterable[nn.Module], check: Check) -> None:
        self._check, self._modules, self._names = check, list(modules), list[str]()

    def start(self) -> None:
        _TAPS.guarded.update(dict.fromkeys(self._modules, self._check))
        self._names += _wrap_all(self._modules)

    def stop(self) -> None:
        """May be called any number of times."""
        for module in self._modules:
            _TAPS.guarded.pop(module, None)
        while self._names:
            _unwrap(self._names.pop())


def _wrap_all(modules: Iterable[nn.Module]) -> list[str]:
    """Wrap the implementations that these modules call; gives their names. Most modules share one config."""
    configs: dict[int, Any] = {id(module.config): module.config for module in modules}
    names = sorted({config._attn_implementation for config in configs.values()})
    for name in names:
        _wrap(name)
    return names


def _wrap(name: str) -> None:
    with _WRAPPING:
        _WRAPPED[name] = _WRAPPED.get(name, 0) + 1
        if _WRAPPED[name] == 1:
            ALL_ATTENTION_FUNCTIONS[name] = _tapped(name)


def _tapped(name: str) -> Callable[..., Any]:
    previous = ALL_ATTENTION_FUNCTIONS.get(name)
    had_override = name in ALL_ATTENTION_FUNCTIONS._local_mapping

    def tapped(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
        mask = args[0] if args else kwargs.get("attention_mask")
        if module in _TAPS.guarded and module not in _TAPS.enough:
            _TAPS.guarded[module](module, query, key, mask)
        if module in _TAPS.watched:
            _TAPS.watched[module].extend(_calls(module, query, key, value, mask, kwargs))
        if module in _TAPS.enough:
            raise _Enough
        function = previous if previous is not None else _eager_of(module)
        result = function(module, query, key, value, *args, **kwargs)
        if module in _TAPS.edited:
            [call] = _calls(module, query, key, value, mask, kwargs)
            result = (_TAPS.edited[module](call, result[0]), *result[1:])
        return result

    tapped.previous, tapped.had_override = previous, had_override  # type: ignore[attr-defined]
    return tapped


def _unwrap(name: str) -> None:
    with _WRAPPING:
        _WRAPPED[name] -= 1
        if _WRAPPED[name]:
            return
        tapped: Any = ALL_ATTENTION_FUNCTIONS[name]
        if tapped.had_override:
            ALL_ATTENTION_FUNCTIONS[name] = tapped.previous
        else:
            del ALL_ATTENTION_FUNCTIONS[name]


def _eager_of(module: nn.Module) -> Callable[..., Any]:
    """Eager attention is not an entry of the interface: each modeling file passes its own function as the default.

    It is called `eager_attention_forward`, but for some that have another one for their encoder (Llama 4).
    """
    forward = inspect.unwrap(type(module).forward)
    for name in forward.__code__.co_names:
        if name.endswith("eager_attention_forward") and name in forward.__globals__:
            return forward.__globals__[name]  # type: ignore[no-any-return]
    for cls in type(module).__mro__:
        function = getattr(sys.modules.get(cls.__module__), "eager_attention_forward", None)
        if function is not None:
            return function
    raise AttributeError(f"{type(module).__name__}: its modeling file has no eager_attention_forward")


def borders_of(mask: Tensor | None) -> Tensor | None:
    """[n + 1] where several images in one row begin and end, if a mask [1, 1, S, S] lets each see itself alone."""
    if mask is None or mask.shape[:2] != (1, 1) or mask.shape[2] != mask.shape[3]:
        return None
    sees = mask[0, 0]
    number = nn.functional.pad(~sees.diagonal(1), (1, 0)).cumsum(0)  # of each token's image
    if int(number[-1]) == 0 or not torch.equal(sees, number[:, None] == number):
        return None
    return nn.functional.pad(torch.bincount(number), (1, 0)).cumsum(0)


def _calls(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, kwargs: dict[str, Any]
) -> list[AttentionCall]:
    query, key, value = query.detach(), key.detach(), value.detach()
    scaling = kwargs.get("scaling")
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    causal = kwargs.get("is_causal")
    causal = bool(getattr(module, "is_causal", False) if causal is None else causal)
    if isinstance(mask, BlockMask):  # flex attention's
        mask = create_mask(mask.mask_mod, mask.shape[0], 1, query.shape[2], key.shape[2], device=str(query.device))
    if isinstance(mask, Tensor) and mask.ndim == 2 and not causal:
        mask = mask.bool()[:, None, None].expand(-1, -1, query.shape[2], -1)  # flash attention in an encoder
    if isinstance(mask, Tensor) and mask.ndim == 4:
        mask = (mask if mask.dtype == torch.bool else mask == 0).expand(query.shape[0], -1, -1, -1)
    else:
        mask = None
    borders = kwargs.get("cu_seq_lens_q")
    if borders is None and not causal:
        borders = borders_of(mask)
    if borders is None:
        softcap, sinks = kwargs.get("softcap"), kwargs.get("s_aux")
        sinks = None if sinks is None else sinks.detach()
        return [AttentionCall(query, key, value, scaling, mask, causal, softcap, sinks)]
    # Flash attention takes all images or windows in one call, and so do all kernels where a mask keeps images apart
    # (Pixtral); else the other kernels get a call for each.
    lengths = (borders[1:] - borders[:-1]).tolist()
    pieces = zip(*(rows.split(lengths, dim=2) for rows in (query, key, value)), strict=True)
    return [AttentionCall(q, k, v, scaling) for q, k, v in pieces]
