"""All that timings say: the tables of a measurement, and the files of a result folder's report."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlmprune.bench.speed_pays import break_even, conditions
from vlmprune.bench.speed_printed import beside
from vlmprune.bench.speed_store import PointResult, load_points
from vlmprune.bench.speed_table import PARTS, Sheet, times


def sheets(results: Sequence[PointResult]) -> list[Sheet]:
    """All tables of these points: one a point and length, then break-even of each model, then papers' tables."""
    parts = [times(result, length) for result in results for length in result.lengths]
    for model in dict.fromkeys(conditions(result) for result in results):
        parts += break_even([result for result in results if conditions(result) == model])
    for preset in dict.fromkeys(result.point.preset for result in results):
        if preset is not None:
            parts.append(beside(preset, [result for result in results if result.point.preset == preset]))
    return parts


def speed_texts(folder: Path) -> dict[str, str]:
    """Contents by file name; nothing where the folder has no timings."""
    points = load_points(folder)
    return {"speed.md": markdown(sheets(points)), "speed.csv": comma_separated(points)} if points else {}


def has_runs(folder: Path) -> bool:
    """Whether the folder holds answers of an accuracy run, too."""
    return (folder / "runs").is_dir()


def markdown(tables: Sequence[Sheet]) -> str:
    parts = ["# Speed"]
    for sheet in tables:
        rows = [sheet.head, ["---", *["---:"] * (len(sheet.head) - 1)], *sheet.lines]
        parts += [f"## {sheet.title}", "\n".join(f"| {' | '.join(row)} |" for row in rows), *sheet.notes]
    return "\n\n".join(parts) + "\n"


def comma_separated(results: Sequence[PointResult]) -> str:
    """One line a turn of a variant, in seconds."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    about = ("model", "dtype", "attention", "device", "visual", "text", "batch")
    writer.writerow((*about, "recipe", "turn", "new_tokens", *PARTS, "total", "joules", "peak_bytes", "kv_bytes"))
    for result in results:
        for recipe, own in result.variants.items():
            for number, turn in enumerate(own.turns):
                for length in result.lengths:
                    figures: list[Any] = [*(part(turn) for part in PARTS.values()), turn.total(length)]
                    row = [getattr(result.point, name) for name in about]
                    row += [recipe, number, length, *(f"{value:.6f}" for value in figures)]
                    row += ["" if turn.joules is None else f"{turn.joules:.3f}", own.peak_bytes]
                    writer.writerow([*row, own.counts.kv_bytes if own.counts else ""])
    return out.getvalue()
