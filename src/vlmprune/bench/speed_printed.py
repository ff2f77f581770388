"""The figures that a paper prints beside those of the preset that repeats its table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median

from vlmprune.bench.speed_plan import speed_preset
from vlmprune.bench.speed_store import PointResult
from vlmprune.bench.speed_table import NONE, Sheet
from vlmprune.bench.store import VANILLA
from vlmprune.bench.turns import Turn

_FIGURES: dict[str, tuple[str, float, int]] = {  # unit of the table, its size, digits
    "first": ("ms to the first token", 1e-3, 1),
    "decode": ("ms a further token", 1e-3, 1),
    "total": ("ms in all", 1e-3, 1),
    "method": ("ms of the method", 1e-3, 2),
    "flops": ("TFLOPs", 1e12, 2),
}


def beside(name: str, results: Sequence[PointResult]) -> Sheet:
    """Printed figures of a preset beside measured ones, and both as shares of the unpruned model's."""
    preset = speed_preset(name)
    lines = []
    for row in preset.printed:
        bases = [other for other in preset.printed if other["visual"] == row["visual"] and other["recipe"] == VANILLA]
        for figure, (words, unit, digits) in _FIGURES.items():
            if figure in row:
                ours = [_figure(r, row["recipe"], figure) for r in results if r.point.visual == row["visual"]]
                base = [_figure(r, VANILLA, figure) for r in results if r.point.visual == row["visual"]]
                own, whole = (values[0] if values else None for values in (ours, base))
                lines.append(
                    [
                        str(row["visual"]),
                        row["recipe"],
                        words,
                        f"{row[figure] / unit:.{digits}f}",
                        NONE if own is None else f"{own / unit:.{digits}f}",
                        _share(row[figure], bases[0][figure] if bases else None),
                        _share(own, whole),
                    ]
                )
    head = ["visual tokens", "recipe", "figure", "printed", "ours", "printed, of vanilla", "ours, of vanilla"]
    caveat = "Another machine, other kernels and other code than the paper's: compare shares, not times."
    point = results[0].point
    title = (
        f"{preset.source}: printed, and measured with {point.new_tokens} new tokens on {point.model}, {point.device}"
    )
    return Sheet(title, head, lines, [caveat, preset.note])


def _figure(result: PointResult, recipe: str, figure: str) -> float | None:
    own = result.variants.get(recipe)
    if own is None:
        return None
    if figure == "flops":
        return own.flops and own.flops.total
    length = result.point.new_tokens
    read: dict[str, Callable[[Turn], float | None]] = {
        "first": lambda turn: turn.first,
        "decode": lambda turn: turn.decode(length),
        "total": lambda turn: turn.total(length),
        "method": lambda turn: turn.method,
    }
    values = [value for turn in own.turns if (value := read[figure](turn)) is not None]
    return median(values) if values else None


def _share(value: float | None, whole: float | None) -> str:
    return NONE if value is None or not whole else f"{value / whole:.2f}"
