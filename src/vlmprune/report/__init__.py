"""Tables, plots, overlays and one self-contained page from stored results. Runs no model, imports nothing heavy."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

_LAZY = {
    "build": "vlmprune.report.assemble",
    "check_report": "vlmprune.report.assemble",
}

if TYPE_CHECKING:
    from vlmprune.report.assemble import build, check_report

__all__ = ["build", "check_report"]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'vlmprune.report' has no attribute {name!r}")
