"""Tables of timings: where the time goes, from where on a method pays for itself, and a paper's figures beside ours."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, NamedTuple

from vlmprune.bench.speed_plan import speed_preset
from vlmprune.bench.speed_store import Measured, PointResult
from vlmprune.bench.store import VANILLA
from vlmprune.bench.timing import Turn

NONE = "–"


class Spread(NamedTuple):
    """Median, smallest and largest of the turns."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Sheet:
    """A table of words, with a title above and sentences below."""

    title: str
    head: Sequence[str]
    lines: Sequence[Sequence[str]]
    notes: Sequence[str] = field(default_factory=list)


def spread(values: Iterable[float]) -> Spread:
    found = list(values)
    return Spread(median(found), min(found), max(found))


def speedup(vanilla: Measured, own: Measured, new_tokens: int) -> Spread:
    """Vanilla's time for an answer over this one's, turn by turn."""
    return spread(a.total(new_tokens) / b.total(new_tokens) for a, b in zip(vanilla.turns, own.turns, strict=True))


def sheets(results: Sequence[PointResult]) -> list[Sheet]:
    """All tables of these points: one a point and length, then break-even of each model, then papers' tables."""
    parts = [_times(result, length) for result in results for length in result.lengths]
    for model in dict.fromkeys(_conditions(result) for result in results):
        parts += _break_even([result for result in results if _conditions(result) == model])
    for preset in dict.fromkeys(result.point.preset for result in results):
        if preset is not None:
            parts.append(_beside(preset, [result for result in results if result.point.preset == preset]))
    return parts


# ---------------------------------------------------------------- where the time goes

HEAD = (
    "recipe", "tokens", "vision", "method", "prefill", "decode/token", "total", "speed-up", "tokens/s", "samples/s",
    "peak MB", "KV MB", "TFLOPs", "4nd²+2n²d+2ndm", "+3ndm", "J/sample",
)  # fmt: skip


def _times(result: PointResult, length: int) -> Sheet:
    point = result.point
    title = (
        f"{point.model}: {point.visual} visual and {point.text} other tokens, batch {point.batch}, {length} new "
        f"token{'s' * (length > 1)}; {point.device}, {point.dtype}, {point.attention}"
    )
    lines = [_line(result, recipe, length) for recipe in point.recipes]
    commit = str(result.made.get("commit") or "unknown")
    notes = [
        f"Milliseconds for the batch, median of {result.turns} turns (range); operations of a sample up to its first "
        f"new token. Commit {commit[:12] + commit[40:]}, torch {point.versions.get('torch')}, transformers "
        f"{point.versions.get('transformers')}, {result.made.get('threads')} threads."
    ]
    return Sheet(title, HEAD, lines, notes)


def _line(result: PointResult, recipe: str, length: int) -> list[str]:
    own, vanilla = result.variants[recipe], result.variants[VANILLA]
    counts, flops, batch = own.counts, own.flops, result.point.batch
    assert counts is not None  # of a complete turn
    total = spread(turn.total(length) for turn in own.turns).median
    operations = (None,) * 3 if flops is None else (flops.total, flops.papers, flops.papers_gated)
    joules = [turn.joules for turn in own.turns if turn.joules is not None]
    longest = length == result.point.new_tokens  # energy is of the whole generation
    return [
        recipe,
        f"{counts.before} > {counts.after}",
        *(_milliseconds(own.turns, part) for part in PARTS.values()),
        _milliseconds(own.turns, lambda turn: turn.decode(length)),
        _milliseconds(own.turns, lambda turn: turn.total(length)),
        "1" if recipe == VANILLA else _ratio(speedup(vanilla, own, length)),
        f"{batch * length / total:.1f}",
        f"{batch / total:.2f}",
        f"{own.peak_bytes / 2**20:.1f}",
        f"{counts.kv_bytes / 2**20:.2f}" if longest else NONE,
        *(NONE if value is None else f"{value / 1e12:.4g}" for value in operations),
        f"{median(joules) / batch:.1f}" if joules and longest else NONE,
    ]


PARTS: dict[str, Callable[[Turn], float]] = {
    "vision": lambda turn: turn.vision,
    "method": lambda turn: turn.method,
    "prefill": lambda turn: turn.prefill,
}


def _milliseconds(turns: Sequence[Turn], part: Callable[[Turn], float | None]) -> str:
    values = [value for turn in turns if (value := part(turn)) is not None]
    if not values:
        return NONE
    middle, low, high = (1e3 * value for value in spread(values))
    return f"{middle:.1f} ({low:.1f}-{high:.1f})"


def _ratio(ratio: Spread) -> str:
    return f"{ratio.median:.2f} ({ratio.low:.2f}-{ratio.high:.2f})"


# ---------------------------------------------------------------- break-even


def _conditions(result: PointResult) -> tuple[object, ...]:
    """Points may stand in one break-even table where only size and batch differ."""
    point = result.point
    return (point.model, point.weights, point.dtype, point.attention, point.device, point.recipes, point.preset,
            point.text, point.positions, point.seed, tuple(sorted(point.versions.items())))  # fmt: skip


def _break_even(results: Sequence[PointResult]) -> list[Sheet]:
    """From how many visual tokens on each method is faster, by batch and length of the answer."""
    first = results[0].point
    columns = sorted({(result.point.batch, length) for result in results for length in result.lengths})
    sizes = sorted({result.point.visual for result in results})
    if len(sizes) < 2:
        return []
    lines = []
    for recipe in first.recipes:
        if recipe != VANILLA:
            lines.append([recipe, *(pays_from(_speedups(results, recipe, *column)) for column in columns)])
    head = ["recipe", *(f"batch {batch}, {length} new" for batch, length in columns)]
    notes = [
        f"Visual tokens from which on a recipe is faster than the unpruned model at every larger size, of "
        f"{', '.join(map(str, sizes))} that were measured, by the median over the turns; ~ where a turn at that size "
        "says otherwise, <= where it pays at the smallest, never where it does not pay at the largest. Time alone is "
        "compared: what a recipe costs in accuracy is not in this table."
    ]
    return [Sheet(f"{first.model}: from how many visual tokens pruning pays, on {first.device}", head, lines, notes)]


def _speedups(results: Sequence[PointResult], recipe: str, batch: int, length: int) -> dict[int, Spread]:
    """By visual tokens."""
    return {
        result.point.visual: speedup(result.variants[VANILLA], result.variants[recipe], length)
        for result in results
        if result.point.batch == batch and length in result.lengths
    }


def pays_from(speedups: Mapping[int, Spread]) -> str:
    """The smallest size from which on all medians are above 1, in words."""
    sizes = sorted(speedups)
    if not sizes:
        return NONE
    paying: int | None = None
    for size in reversed(sizes):
        if speedups[size].median <= 1:
            break
        paying = size
    if paying is None:
        return f"never (to {sizes[-1]})"
    sign = "~" if speedups[paying].low <= 1 else ""
    return f"{sign}{'<= ' if paying == sizes[0] else ''}{paying}"


# ---------------------------------------------------------------- a paper's figures beside ours

_FIGURES: dict[str, tuple[str, float, int]] = {  # unit of the table, its size, digits
    "first": ("ms to the first token", 1e-3, 1),
    "decode": ("ms a further token", 1e-3, 1),
    "total": ("ms in all", 1e-3, 1),
    "method": ("ms of the method", 1e-3, 2),
    "flops": ("TFLOPs", 1e12, 2),
}


def _beside(name: str, results: Sequence[PointResult]) -> Sheet:
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
    return Sheet(f"{preset.source}: printed and measured", head, lines, [caveat, preset.note])


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


# ---------------------------------------------------------------- files


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
