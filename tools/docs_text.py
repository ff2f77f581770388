"""Tables and text as Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def change(figures: Sequence[float], unit: str = "") -> str:
    """A change with the ends of its interval."""
    value, low, high = figures
    return f"{value:+.1f}{unit} [{low:+.1f}, {high:+.1f}]".replace("-", "−")


def plain(text: str) -> str:
    """Text on one line, with what Markdown would take for markup made literal outside of code spans."""
    parts = re.split(r"(`[^`]*`)", " ".join(text.split()))
    return "".join(part if part.startswith("`") else re.sub(r"([*_<\\])", r"\\\1", part) for part in parts)
