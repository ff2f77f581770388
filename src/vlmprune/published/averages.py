"""What papers print as a method's average over their sets, as a share of the unpruned model's: one value a budget."""

from __future__ import annotations

from functools import cache
from statistics import fmean
from typing import NamedTuple

from vlmprune.published import VANILLA, holds, read_rows, standard


class Average(NamedTuple):
    """A printed method at a budget.

    Attributes:
        method: as the paper calls it.
        ours: the recipes without a budget that it may be here, in standard spelling; none where nothing here is it.
        share: of the visual tokens, in (0, 1]; a mean over the layers for methods that cut inside the language model.
        value: percent of the unpruned model's.
    """

    method: str
    ours: tuple[str, ...]
    share: float
    value: float


class Averages(NamedTuple):
    """One printed table.

    Attributes:
        source, table, model: as in `results.csv`.
        rows: without the unpruned model.
    """

    source: str
    table: str
    model: str
    rows: tuple[Average, ...]

    @property
    def title(self) -> str:
        return f"{self.source}, table {self.table}"


@cache
def averages() -> tuple[Averages, ...]:
    """The tables that `averages.csv` names.

    The averages are computed from the printed cells as the paper says that it computes them, since some printed ones
    are wrong (`notes.csv`): the mean of the ratios to the unpruned model's cells, or the ratio of the means.
    """
    return tuple(_averages(entry) for entry in read_rows("averages"))


def _averages(entry: dict[str, str]) -> Averages:
    cells: dict[tuple[str, str], dict[str, float]] = {}
    for row in read_rows("results"):
        of_table = all(row[name] == entry[name] for name in ("source", "table", "model"))
        if of_table and row["metric"] != entry["average"]:
            cells.setdefault((row["method"], row["budget"]), {})[row["metric"]] = float(row["value"])
    whole = next(values for (method, _), values in cells.items() if method == VANILLA)
    rows = (
        Average(method, _ours(entry, method), _tokens(budget) / int(entry["tokens"]), _relative(values, whole, entry))
        for (method, budget), values in cells.items()
        if method != VANILLA
    )
    return Averages(entry["source"], entry["table"], entry["model"], tuple(rows))


def _ours(entry: dict[str, str], method: str) -> tuple[str, ...]:
    row = {"source": entry["source"], "table": entry["table"], "method": method}
    return tuple(standard(one["ours"]) for one in read_rows("methods") if holds(one, row, "method"))


def _tokens(budget: str) -> int:
    """Of "192 tokens"."""
    count, _, unit = budget.partition(" ")
    if unit != "tokens":
        raise ValueError(f"{budget!r} is not a number of tokens.")
    return int(count)


def _relative(values: dict[str, float], whole: dict[str, float], entry: dict[str, str]) -> float:
    """Percent, over the cells that are printed."""
    if entry["mean_of"] == "ratios":
        return 100.0 * fmean(value / whole[metric] for metric, value in values.items())
    return 100.0 * fmean(values.values()) / fmean(whole[metric] for metric in values)
