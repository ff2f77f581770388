"""Tables, plots, overlays and one self-contained page from a benchmark's results. Loads nothing heavy on import."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

_LAZY = {
    "build": "vlmprune.report.assemble",
    "check_report": "vlmprune.report.assemble",
    "draw": "vlmprune.report.overlay",
    "draw_run": "vlmprune.report.overlay",
    "run_image": "vlmprune.report.run",
    "write_examples": "vlmprune.report.examples",
}

if TYPE_CHECKING:
    from vlmprune.report.assemble import build, check_report
    from vlmprune.report.examples import write_examples
    from vlmprune.report.overlay import draw, draw_run
    from vlmprune.report.run import run_image

__all__ = ["build", "check_report", "draw", "draw_run", "run_image", "write_examples"]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'vlmprune.report' has no attribute {name!r}")
