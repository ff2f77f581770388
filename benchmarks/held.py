"""Accuracy of recipes on the embedded models, each held against another one: what a difference between them does."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from vlmprune.assets import embedded_names
from vlmprune.bench.compare import build_tables
from vlmprune.bench.drawn import units_of_rows
from vlmprune.bench.plan import Plan, Variant, variants_of
from vlmprune.bench.runner import run_bench
from vlmprune.bench.stats import mean_difference
from vlmprune.bench.table import Table
from vlmprune.tasks import tabled_tasks


class Held(NamedTuple):
    """A recipe, and what it is held against, as results name them; under which positions, None for each one's own."""

    what: str
    recipe: str
    against: str
    positions: str | None = None
    against_positions: str | None = None

    @property
    def sides(self) -> tuple[tuple[str, str | None], tuple[str, str | None]]:
        """Both, as rows of a table are named."""
        return (self.recipe, self.positions), (self.against, self.against_positions)


@dataclass(frozen=True)
class Comparisons(Plan):
    """A plan in which a model, also one alone, does what it can."""

    @property
    def leaves_out(self) -> bool:
        return True


def variant(text: str, keep: float | None = None) -> Variant:
    """A recipe at a budget, for which it may have a place, `{keep}`; without one, a recipe that has its own."""
    return variants_of(text.format(keep=keep), () if keep is None else (keep,))[0]


def named(held: Iterable[Held]) -> list[tuple[str, str | None]]:
    """All that are compared, each once."""
    return list(dict.fromkeys(side for one in held for side in one.sides))


def accuracies(
    folder: Path, each: int, held: Sequence[Held], models: tuple[str, ...] = embedded_names()
) -> dict[str, dict[str, Any]]:
    """By model, with `each` questions of every task about one scene. Runs what the folder does not hold yet."""
    sides = named(held)
    for positions in dict.fromkeys(policy for _, policy in sides):
        recipes = tuple(recipe for recipe, policy in sides if policy == positions)
        run_bench(
            Comparisons(models=models, methods=recipes, tasks=tabled_tasks(), limit=each, positions=positions),
            folder,
            lambda at: print(f"{at.model} {at.task} {at.variant}: {at.done} of {at.due}", end="\033[K\r", flush=True),
        )
    return {table.model: accuracy(table, held) for table in build_tables(folder)}


def accuracy(table: Table, held: Sequence[Held]) -> dict[str, Any]:
    """The means of each comparison, their change, and the mean tokens of a layer; without what the model cannot do."""
    rows = {(row.recipe, next(iter(row.cells.values())).result.positions): row for row in table.rows}
    if table.vanilla is None or table.vanilla.abs_mean is None:
        raise SystemExit(f"{table.model}: no task is left to average.")
    held = [one for one in held if all(side in rows for side in one.sides)]
    sides = named(held)
    units = dict(zip(sides, units_of_rows(table, [rows[side] for side in sides])[:-1], strict=True))
    found = []
    for one in held:
        own, other = (rows[side] for side in one.sides)
        scored, against = (units[side] for side in one.sides)
        figures = {
            "mean": round(own.abs_mean or 0.0, 2),
            "against_mean": round(other.abs_mean or 0.0, 2),
            "entering": round(own.tokens_entering, 1),
            "against_entering": round(other.tokens_entering, 1),
            "change": rounded(mean_difference(scored, against)),
        }
        found.append(one._asdict() | figures)
    return {"vanilla": round(table.vanilla.abs_mean, 2), "tasks": list(table.averaged), "rows": found}


def rounded(figures: Sequence[float]) -> list[float]:
    return [round(float(figure), 2) for figure in figures]
