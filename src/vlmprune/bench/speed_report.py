"""The timings of a result folder as texts for its report."""

from __future__ import annotations

from pathlib import Path

from vlmprune.bench.speed_store import load_points
from vlmprune.bench.speed_table import comma_separated, markdown, sheets


def speed_texts(folder: Path) -> dict[str, str]:
    """Contents by file name; nothing where the folder has no timings."""
    points = load_points(folder)
    return {"speed.md": markdown(sheets(points)), "speed.csv": comma_separated(points)} if points else {}


def has_runs(folder: Path) -> bool:
    """Whether the folder holds answers of an accuracy run, too."""
    return (folder / "runs").is_dir()
