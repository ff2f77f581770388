"""Where the time of a generation goes: one table a point and length of the answer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import NamedTuple

from vlmprune.bench.speed_store import Measured, PointResult
from vlmprune.bench.store import VANILLA
from vlmprune.bench.turns import Turn

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


HEAD = (
    "recipe", "tokens", "vision", "method", "prefill", "decode/token", "total", "speed-up", "tokens/s", "samples/s",
    "peak MB", "KV MB", "TFLOPs", "4nd²+2n²d+2ndm", "+3ndm", "J/sample",
)  # fmt: skip


def times(result: PointResult, length: int) -> Sheet:
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
