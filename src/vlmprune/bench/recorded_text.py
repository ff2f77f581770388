"""What `vlmprune score` prints: the row that a run has in the tables, and the categories under it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from vlmprune.bench.recorded import Scores
from vlmprune.bench.stats import Estimate
from vlmprune.bench.table import NOT_MEASURED

_FEW = 3  # problems that are named


def as_text(scores: Scores, title: str) -> str:
    """The table.

    Args:
        title: of the answers, before it.
    """
    head = ["metric", "value", "95 % interval", "points", "n", "units", "unparsed"]
    rows = [_row(scores)]
    parts = [title, _table([head, *rows])]
    if scores.details:
        parts.append(_table([["detail", "value"], *([name, _figure(of)] for name, of in scores.details.items())]))
    if len(scores.categories) > 1:
        counts = Counter(record.category for record in scores.records if not record.problem)
        lines = [[name or "(none)", _figure(of), f"{counts[name]:,}"] for name, of in scores.categories.items()]
        parts.append(_table([["category", "mean score", "n"], *lines]))
    return "\n\n".join(parts + _notes(scores))


def _row(scores: Scores) -> list[str]:
    unparsed = f"{scores.unparsed:.1f} %" if scores.measured else "-"
    points = f"{scores.points:.2f}".rstrip("0").rstrip(".") if scores.measured else "-"
    value, span = _figure(scores.value.value), _span(scores.value)
    return [scores.task.metric.name, value, span, points, f"{scores.n:,}", f"{scores.units:,}", unparsed]


def _figure(value: float) -> str:
    return NOT_MEASURED if math.isnan(value) else f"{value:.2f}"


def _span(value: Estimate) -> str:
    return "-" if math.isnan(value.value) else f"[{value.low:.2f}, {value.high:.2f}]"


def _notes(scores: Scores) -> list[str]:
    said = []
    if not scores.measured:
        waiting = sum(math.isnan(record.score) for record in scores.records if not record.problem)
        said.append(f"{waiting:,} replies need a judge: give --judge and --judge-model.")
    if scores.problems:
        named = "; ".join(f"{name} ({why})" for name, why in list(scores.problems.items())[:_FEW])
        dots = "; ..." if len(scores.problems) > _FEW else ""
        said.append(f"{len(scores.problems):,} questions are in no figure: {named}{dots}.")
    return ["\n".join(said)] if said else []


def _table(rows: Sequence[Sequence[str]]) -> str:
    """Columns of equal width, the first to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        "  ".join(cell.rjust(width) if k else cell.ljust(width) for k, (cell, width) in enumerate(zip(row, widths)))
        for row in rows
    )
    return "\n".join(line.rstrip() for line in lines)
