"""typer, without which there is no command line."""

from __future__ import annotations

from vlmprune.core.extras import SHELL, needs

try:
    import typer
except ImportError:
    raise SystemExit(f"The command line {needs(SHELL)}") from None

__all__ = ["typer"]
