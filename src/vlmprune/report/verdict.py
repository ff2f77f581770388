"""What a comparison says at equal cost: the best method, those like it, and those like random choice.

Means of the primary metrics are compared in pairs on the same questions (`bench.stats.mean_difference`): two methods
are told apart where the 95 % interval of their difference excludes zero.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vlmprune.bench.drawn import units_of_rows
from vlmprune.bench.stats import Estimate, mean_difference, mean_estimate
from vlmprune.bench.table import Row, Table
from vlmprune.bench.units import Units
from vlmprune.report.means import Level, levels_of, nearest

RANDOM = "random"
WORDS = (
    "Equal cost: about as many tokens enter a layer of the language model, mean over its layers. Accuracy is the mean "
    "of the primary metrics. Two methods can be told apart where the 95 % interval of their difference on the same "
    "questions excludes zero. Each pair is tested alone, so among many pairs a few differ by chance."
)


@dataclass(frozen=True)
class Verdict:
    """What can be said of the methods at one level of cost.

    Attributes:
        level: the budget that they meet.
        rows: of the methods, one each, the best mean accuracy first.
        alike: those that cannot be told from the first.
        random: the row of random choice; None where it was not run.
        chance: those that cannot be told from random choice.
        worse: those that are worse than random choice.
    """

    level: Level
    rows: tuple[Row, ...]
    alike: tuple[Row, ...]
    random: Row | None
    chance: tuple[Row, ...]
    worse: tuple[Row, ...]

    @property
    def best(self) -> Row:
        return self.rows[0]


@dataclass(frozen=True)
class Means:
    """Accuracy as a mean over tasks.

    Attributes:
        of: the figure with its 95 % interval, by id of the row; rows that lack a task have none.
        verdicts: from the largest level down.
    """

    of: Mapping[int, Estimate]
    verdicts: tuple[Verdict, ...]


def means_of(table: Table) -> Means:
    """A table's means with their intervals and what they say; nothing where no task is averaged."""
    rows = [row for row in table.rows if row.abs_mean is not None]
    if not rows:
        return Means({}, ())
    found = units_of_rows(table, rows)
    units = {id(row): of_row for row, of_row in zip(rows, found[:-1], strict=True)}
    levels = (_verdict(level, rows, units) for level in levels_of(table))
    of = {id(row): _mean(table, row, units[id(row)]) for row in rows}
    return Means(of, tuple(verdict for verdict in levels if verdict is not None))


def _mean(table: Table, row: Row, units: Sequence[Units]) -> Estimate:
    """Of a single task, the interval that its own cell has."""
    return row.cells[table.averaged[0]].value if len(units) == 1 else mean_estimate(units)


def _verdict(level: Level, rows: Sequence[Row], units: Mapping[int, Sequence[Units]]) -> Verdict | None:
    """None where fewer than two methods have a row at the level."""
    pruned = [row for row in rows if not row.is_vanilla]
    found = []
    for method in dict.fromkeys(row.method for row in pruned):
        own = [row for row in pruned if row.method == method]
        row = nearest(own, level.tokens / own[0].tokens_before)
        if row is not None:
            found.append(row)
    if len(found) < 2:
        return None
    found.sort(key=lambda row: -(row.abs_mean or 0.0))
    best, random = found[0], next((row for row in found if row.method == RANDOM), None)

    def gap(row: Row, other: Row) -> Estimate:
        return mean_difference(units[id(row)], units[id(other)])

    alike = tuple(row for row in found[1:] if gap(row, best).high >= 0)
    gaps = [] if random is None else [(row, gap(row, random)) for row in found if row is not random]
    return Verdict(
        level,
        tuple(found),
        alike,
        random,
        chance=tuple(row for row, one in gaps if one.low <= 0 <= one.high),
        worse=tuple(row for row, one in gaps if one.high < 0),
    )


def sentences(verdict: Verdict) -> list[tuple[str, tuple[str, ...]]]:
    """A verdict in words: sentences, each with the names that it ends in, if any."""
    best, count = verdict.best, len(verdict.rows)
    lead = f"{best.method} is the most accurate of {count} methods, at {best.abs_mean:.1f} %."
    said: list[tuple[str, tuple[str, ...]]] = [(lead, ())]
    if len(verdict.alike) == count - 1:
        said.append(("No other method can be told from it.", ()))
    elif verdict.alike:
        said.append((f"Cannot be told from it ({len(verdict.alike)}):", _names(verdict.alike)))
    else:
        said.append(("Every other method can be told from it.", ()))
    if verdict.random is None:
        return [*said, ("Random choice was not run at this cost.", ())]
    if len(verdict.chance) == count - 1:
        said.append(("No method can be told from random choice.", ()))
    elif verdict.chance:
        said.append((f"Cannot be told from random choice ({len(verdict.chance)}):", _names(verdict.chance)))
    else:
        said.append(("Every method can be told from random choice.", ()))
    if verdict.worse:
        said.append((f"Worse than random choice ({len(verdict.worse)}):", _names(verdict.worse)))
    return said


def _names(rows: Sequence[Row]) -> tuple[str, ...]:
    return tuple(row.method for row in rows)
