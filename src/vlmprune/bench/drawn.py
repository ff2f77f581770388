"""The means of a table's rows under random weights of the questions, the same for all of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vlmprune.bench.ranks import drawn_means
from vlmprune.bench.stats import LEVEL, Estimate
from vlmprune.bench.table import Row, Table
from vlmprune.bench.units import Units


def drawn_rows(table: Table, rows: Sequence[Row]) -> np.ndarray:
    """rel_mean, over the table's averaged tasks: [draws, rows], percent.

    Args:
        rows: of this table, all run on the averaged tasks, as is vanilla.
    """
    *units, vanilla = units_of_rows(table, rows)
    return drawn_means(units, vanilla)


def units_of_rows(table: Table, rows: Sequence[Row]) -> list[list[Units]]:
    """Of each of a table's rows, and of vanilla at the end, the units by averaged task."""
    if table.vanilla is None:
        raise ValueError(f"{table.model} has no unpruned run.")
    return [[row.cells[task].counted for task in table.averaged] for row in (*rows, table.vanilla)]


def interval(value: float, draws: np.ndarray) -> Estimate:
    """A figure with the interval of its draws [draws]; NaN among them, where it is undefined, is left out."""
    tail = (100.0 - LEVEL) / 2
    known = draws[~np.isnan(draws)]
    low, high = np.percentile(known, (tail, 100.0 - tail)) if len(known) else (np.nan, np.nan)
    return Estimate(value, float(low), float(high))
