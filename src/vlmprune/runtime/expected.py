"""What the runtime takes for granted of transformers: stated here once, looked up by signature, held in every forward.

Stated: the names of the arguments that the multimodal model, the text model, its decoder layers, their attention and
transformers' mask functions take; the methods by which a cache tells its lengths; the outputs that carry the cache on.
Held by the hooks, with `Expected.hold`: which module is called, how often and in which order, with sequences of which
length, and that what the runtime hands on arrives. What is not as expected is an `Unexpected`, never an answer.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
import transformers
from torch import Tensor, nn
from transformers.cache_utils import Cache

from vlmprune.core.errors import UserError
from vlmprune.models.base import Adapter

CACHE = ("cache", "past_key_values")  # what the key-value cache is called: from transformers 5.24 on, before
HIDDEN, EMBEDS, MASK, POSITIONS = "hidden_states", "inputs_embeds", "attention_mask", "position_ids"
ROTARY = "position_embeddings"
TEXT_MODEL = (EMBEDS, MASK, POSITIONS)
DECODER_LAYER = (HIDDEN, MASK, ROTARY)
CACHE_METHODS = (
    "get_seq_length", "get_query_offset", "get_mask_sizes", "update", "crop", "reset", "reorder_cache",
    "batch_repeat_interleave", "batch_select_indices",
)  # fmt: skip

_NUMBERS = itertools.count()
_enforced = True


class Unexpected(UserError):
    """A model, or transformers, did not do what the runtime takes for granted of it, so there is no answer."""


@contextmanager
def unchecked() -> Iterator[None]:
    """Let surprises pass, to see that the oracle notices what the checks would have refused. For tests alone."""
    global _enforced
    _enforced = False
    try:
        yield
    finally:
        _enforced = True


class Interface:
    """The arguments of one function, by name.

    Attributes:
        cache: what it calls the key-value cache, or None.
        open: whether it takes names that it does not state (`**kwargs`).
    """

    def __init__(self, function: Callable[..., Any], bound: bool = False) -> None:
        stated = list(inspect.signature(function).parameters.values())[int(bound) :]  # without the method's self
        self.positional = [p.name for p in stated if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        self.names = {p.name for p in stated if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
        self.open = any(p.kind == p.VAR_KEYWORD for p in stated)
        self.cache = next((name for name in CACHE if name in self.names), None)

    def named(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """A call's arguments by name, the cache under the name that the function states for it."""
        call = {**dict(zip(self.positional, args, strict=False)), **kwargs} if args else dict(kwargs)
        if self.cache is not None:
            for other in CACHE:
                if other != self.cache and other in call:
                    value = call.pop(other)
                    call[self.cache] = value if call.get(self.cache) is None else call[self.cache]
        return call

    def missing(self, names: tuple[str, ...]) -> list[str]:
        return [name for name in names if name not in self.names]


# By function, and no longer than it lives: one that was put on a model holds the model.
_KNOWN: WeakKeyDictionary[Callable[..., Any], Interface] = WeakKeyDictionary()


def interface(function: Callable[..., Any]) -> Interface:
    """How a function, or a method of an object, is called."""
    plain = getattr(function, "__func__", function)
    known = _KNOWN.get(plain)
    if known is None:
        known = _KNOWN[plain] = Interface(plain, bound=plain is not function)
    return known


def interface_of(module: nn.Module) -> Interface:
    """How a module is called now: a forward that was replaced since is looked up again."""
    return interface(module.forward)


def cache_in(values: Mapping[str, Any]) -> Cache | None:
    """The key-value cache among named arguments, by either name."""
    return next((values[name] for name in CACHE if values.get(name) is not None), None)


def cache_of(output: Any) -> Cache | None:
    """The key-value cache that a forward returned."""
    values = output.values() if isinstance(output, Mapping) else output
    return next((value for value in values if isinstance(value, Cache)), None)


def rotary_ids(given: Mapping[str, Any]) -> dict[str, Tensor]:
    """The position ids among the arguments of a rotary embedding, by name.

    By the usual name, as the ids of some models are floats (Qwen3-Omni); else all that is whole.
    """
    tensors = {name: value for name, value in given.items() if isinstance(value, Tensor)}
    if POSITIONS in tensors:
        return {POSITIONS: tensors[POSITIONS]}
    return {name: value for name, value in tensors.items() if not torch.is_floating_point(value)}


class Expected:
    """What is expected of one model.

    Attributes:
        attention: the module that calls the attention function, by decoder layer; recurrent ones have none.
        kinds: how each decoder layer attends (`Adapter.layer_kind`).
        number: another one for each session that is opened.

    Raises:
        Unexpected: on construction, where a name that the runtime needs is not there.
    """

    def __init__(self, adapter: Adapter) -> None:
        self.model, self.number, self._config = type(adapter.model).__name__, next(_NUMBERS), adapter.text_model.config
        self.attention = {layer: adapter.decoder_attention(layer) for layer in adapter.attention_layers}
        self.kinds = [adapter.layer_kind(layer) for layer in range(len(adapter.decoder_layers))]
        self._states("language model", interface_of(adapter.text_model), TEXT_MODEL, cache=True)
        for number, layer in enumerate(adapter.decoder_layers if adapter.only_before is None else ()):
            self._states(f"decoder layer {number}", interface_of(layer), DECODER_LAYER)
        self._states("model", interface_of(adapter.inner), (MASK, EMBEDS), cache=True)
        if lost := [name for name in CACHE_METHODS if not hasattr(Cache, name)]:
            self.surprise(f"transformers' caches have no {' and no '.join(lost)}")

    @property
    def here(self) -> tuple[int, str]:
        """The session, as the model may be changed between two, and the kernel, as each gets masks of its own."""
        return self.number, self._config._attn_implementation

    def surprise(self, found: str) -> None:
        """Raise Unexpected, in a sentence that says what was found."""
        if _enforced:
            raise Unexpected(
                f"{found}: vlmprune does not expect that of {self.model} with transformers {transformers.__version__}, "
                "and gives no answer rather than a wrong one. Undo what wraps or replaces parts of the model, or "
                "install a version of transformers that vlmprune is tested with."
            )

    def _states(self, what: str, interface: Interface, names: tuple[str, ...], cache: bool = False) -> None:
        if missing := interface.missing(names):
            self.surprise(f"The {what} takes no argument called {' and none called '.join(missing)}")
        if cache and interface.cache is None:
            self.surprise(f"The {what} takes no cache by a name that vlmprune knows ({' or '.join(CACHE)})")

    def no_other_cache(self, call: Mapping[str, Any]) -> None:
        """A cache handed over under a name that nobody knows would be one that the runtime does not see."""
        if other := [name for name, value in call.items() if isinstance(value, Cache) and name not in CACHE]:
            self.surprise(f"The language model was given a cache called {' and one called '.join(other)}")

    def mask(self, function: Callable[..., Any], cache: Cache | None, arguments: dict[str, Any]) -> Any:
        """One of transformers' mask functions, its cache under the name that it states."""
        named = interface(function)
        missing = [] if named.open else named.missing(tuple(arguments))
        if missing or named.cache is None:
            name = getattr(function, "__name__", "mask function")
            self.surprise(f"transformers' {name} takes no {' and no '.join(missing or CACHE)}")
        return function(**arguments, **{named.cache or CACHE[0]: cache})


def same(given: Any, arrived: Any) -> bool:
    """Whether what was handed on is what arrived, perhaps on another device of a model that is spread over several."""
    if given is arrived:
        return True
    if isinstance(given, tuple | list) and isinstance(arrived, tuple | list):
        return len(given) == len(arrived) and all(map(same, given, arrived))
    if isinstance(given, Tensor) and isinstance(arrived, Tensor) and given.shape == arrived.shape:
        if given.untyped_storage().data_ptr() == arrived.untyped_storage().data_ptr():
            return given.stride() == arrived.stride() and given.storage_offset() == arrived.storage_offset()
        return torch.equal(given, arrived.to(given.device))
    return False
