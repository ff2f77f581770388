"""Asking a model about pictures, and drawing what was kept of them. Loads nothing heavy on import."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

_LAZY = {
    "answer": "vlmprune.ask.run",
    "write_examples": "vlmprune.ask.examples",
}

if TYPE_CHECKING:
    from vlmprune.ask.examples import write_examples
    from vlmprune.ask.run import answer

__all__ = ["answer", "write_examples"]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'vlmprune.ask' has no attribute {name!r}")
