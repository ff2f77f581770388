"""What a session puts on the objects of a model, and takes off again: attributes of their own, and hooks.

A copy of the model that is made meanwhile (copied, pickled, saved) is made without all that: a plain model.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from vlmprune.core.errors import UserError

REDUCE = "__reduce_ex__"  # what copy.deepcopy, pickle and torch.save ask an object for


class Attachments:
    """All that one session put on a model's objects."""

    def __init__(self) -> None:
        self._handles: list[Any] = []
        self._undo: list[Callable[[], None]] = []
        self._had: dict[int, dict[str, Any]] = {}  # of each owner, the attributes put on it and what it had there

    def put(self, owner: Any, name: str, value: Any) -> None:
        """Give `owner` an attribute of its own, past `nn.Module`'s bookkeeping.

        One that the object had of its own (another library's, such as accelerate's `forward`, or a `generate` of the
        user's) is put back at the end, and is what a copy has; otherwise the class's shows again.
        """
        self._plain_copies(owner)
        self._undo.append(put(owner, name, value, self._had[id(owner)]))

    def pre_hook(self, module: nn.Module, hook: Callable[..., Any]) -> Any:
        """Run `hook(module, args, kwargs)` before each call of the module; returns what `take_off` takes."""
        self._plain_copies(module)
        self._handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
        return self._handles[-1]

    def take_off(self, handles: Sequence[Any]) -> None:
        """Remove some hooks before the end."""
        for handle in handles:
            handle.remove()
        self._handles = [handle for handle in self._handles if handle not in handles]

    def after(self, module: nn.Module, hook: Callable[..., Any], always: bool = True) -> Any:
        """Run `hook(module, args, output)` after each call of the module; `always`: with None where it raised, too."""
        self._plain_copies(module)
        self._handles.append(module.register_forward_hook(hook, always_call=always))
        return self._handles[-1]

    def undo(self) -> None:
        for handle in self._handles:
            handle.remove()
        while self._undo:
            self._undo.pop()()
        self._handles, self._had = [], {}

    def _plain_copies(self, owner: Any) -> None:
        if id(owner) not in self._had:
            self._had[id(owner)] = {}
            self._undo.append(put(owner, REDUCE, _Reducer(self, owner), self._had[id(owner)]))

    def plain_state(self, owner: Any, state: dict[str, Any]) -> dict[str, Any]:
        """An object's attributes as they were without this session."""
        plain = dict(state)
        for name, own in self._had[id(owner)].items():
            plain.pop(name, None)
            if own is not _NOTHING:
                plain[name] = own
        ours = {handle.id for handle in self._handles}
        for name, hooks in plain.items():
            if name.startswith("_forward") and isinstance(hooks, dict):
                plain[name] = type(hooks)((key, hook) for key, hook in hooks.items() if key not in ours)
        return plain


class Removable:
    """Hooks that are on a model only while something needs them, as each lengthens every call of its module.

    A model may answer in several threads at once, and one may be inside a call when another takes the hooks off. It
    then calls those before it without its `kwargs`: let such a hook have None as their default, and do nothing.
    """

    def __init__(self, attached: Attachments) -> None:
        self._attached, self._hooks = attached, list[Callable[[], Any]]()
        self._on: list[Any] = []
        self._lock, self._needed_by = threading.Lock(), set[int]()  # threads

    def add(self, module: nn.Module, hook: Callable[..., Any], after: bool = False) -> None:
        """Before each call of the module, or after it, unless it raised."""
        put_on = functools.partial(self._attached.after, always=False) if after else self._attached.pre_hook
        self._hooks.append(functools.partial(put_on, module, hook))

    def put_on(self) -> None:
        self._on = [put_on() for put_on in self._hooks]

    @property
    def on(self) -> bool:
        return bool(self._on)

    def needed(self) -> None:
        """From now on until this thread says `over`."""
        if torch.compiler.is_compiling() and self._on:
            return  # what was traced with them on runs so
        with self._lock:
            self._needed_by.add(threading.get_ident())
            if not self._on:
                self.put_on()

    def over(self) -> None:
        """This thread needs them no more. They stay on, as the next call may need them again."""
        if not torch.compiler.is_compiling():
            self._needed_by.discard(threading.get_ident())

    def unneeded(self) -> None:
        """Off, unless another thread needs them."""
        if not self._on or self._needed_by or torch.compiler.is_compiling():
            return
        with self._lock:
            if not self._needed_by:
                self._attached.take_off(self._on)
                self._on = []


class _Reducer:
    """Stands in for an object's `__reduce_ex__`."""

    def __init__(self, attached: Attachments, owner: Any) -> None:
        self._attached, self._owner = attached, owner

    def __call__(self, protocol: Any) -> tuple[Any, ...]:
        reduced: Any = type(self._owner).__reduce_ex__(self._owner, protocol)  # type: ignore[call-arg]
        if isinstance(reduced, str) or not isinstance(reduced[2], dict):
            raise UserError(
                f"A {type(self._owner).__name__} cannot be copied while it is pruned: copy it outside the block."
            )
        return (*reduced[:2], self._attached.plain_state(self._owner, reduced[2]), *reduced[3:])


_NOTHING = object()


def put(owner: Any, name: str, value: Any, had: dict[str, Any] | None = None) -> Callable[[], None]:
    """Give `owner` an attribute of its own; returns what undoes it. `had` takes down what it had there before."""
    own = owner.__dict__.get(name, _NOTHING)
    if had is not None:
        had.setdefault(name, own)
    owner.__dict__[name] = value

    def undo() -> None:
        if own is _NOTHING:
            owner.__dict__.pop(name, None)
        else:
            owner.__dict__[name] = own

    return undo
