"""Attributes put on one object over those of its class, and taken off again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def put(owner: Any, name: str, value: Any) -> Callable[[], None]:
    """Give `owner` an attribute of its own, past `nn.Module`'s bookkeeping.

    Returns:
        What undoes it. An attribute that the object had of its own (another library's, such as accelerate's `forward`,
        or a `generate` of the user's) is put back; otherwise the class's shows again.
    """
    had = name in owner.__dict__
    own = owner.__dict__.get(name)
    owner.__dict__[name] = value

    def undo() -> None:
        if had:
            owner.__dict__[name] = own
        else:
            owner.__dict__.pop(name, None)

    return undo
