"""How far the order of the methods on a model agrees with the order that papers print for LLaVA-1.5-7B."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from vlmprune.assets import embedded_names
from vlmprune.bench.drawn import drawn_rows, interval
from vlmprune.bench.ranks import spearman
from vlmprune.bench.stats import Estimate
from vlmprune.bench.table import Row, Table
from vlmprune.bench.tabled import as_tabled
from vlmprune.published import is_model
from vlmprune.published.averages import Average, Averages, averages
from vlmprune.report.means import nearest

FEWEST = 4  # methods, below which a correlation says nothing
_SAME_BUDGET = 0.02  # of a budget: 33.3 % is written for a third, and a small image has few tokens to round to
MEAN, ASKED, BEFORE = SCOPES = (
    "equal mean tokens per layer",
    "budgets as each method counts them",
    "equal means, cut before the LLM",
)


@dataclass(frozen=True)
class Pair:
    """A measured row and what a paper prints for the same method at the same budget."""

    row: Row
    printed: Average


@dataclass(frozen=True)
class Agreement:
    """Measured beside printed, for one printed table and one way to choose the rows.

    Attributes:
        scope: one of SCOPES.
        paper: the table; None for the mean over several.
        pairs: of the budgets with at least FEWEST methods.
        correlation: Spearman's, mean over these budgets (or over the tables).
        by_share: the same of each budget.
        difference: mean absolute difference of the relative accuracies, points.
    """

    scope: str
    paper: Averages | None
    pairs: tuple[Pair, ...]
    correlation: Estimate
    by_share: dict[float, Estimate]
    difference: Estimate

    @property
    def methods(self) -> list[str]:
        """The printed names of the methods compared."""
        return list(dict.fromkeys(pair.printed.method for pair in self.pairs))


@dataclass(frozen=True)
class _Drawn:
    """Figures of a comparison: as measured, and in each draw of the questions."""

    value: float
    draws: np.ndarray

    def estimate(self) -> Estimate:
        return interval(self.value, self.draws)


def is_compared(model: str, printed: str) -> bool:
    """Whether a model of ours is held against what is printed for `printed`: that model, and the embedded ones."""
    return model in embedded_names() or is_model(model, printed)


def agreements(table: Table) -> list[Agreement]:
    """Of every printed table and scope with at least FEWEST methods at some budget, then the means over the tables.

    Over the tasks of which the printed tables ask the like (`GeneratedTask.tabled`), and all data sets.
    """
    table = as_tabled(table)
    papers = [paper for paper in averages() if is_compared(table.model, paper.model)]
    chosen = {(scope, paper): compared(table.rows, paper, scope) for scope in SCOPES for paper in papers}
    chosen = {key: pairs for key, pairs in chosen.items() if pairs}
    rows = list({id(pair.row): pair.row for pairs in chosen.values() for pair in pairs}.values())
    means = _means(table, rows) if rows else {}
    found = []
    for scope in SCOPES:
        of_scope = [(paper, pairs, *_figures(pairs, means)) for (s, paper), pairs in chosen.items() if s == scope]
        found += [_agreement(scope, paper, pairs, order, gap) for paper, pairs, order, gap in of_scope]
        if len(of_scope) > 1:
            found.append(_over_tables(scope, [(order, gap) for _, _, order, gap in of_scope]))
    return found


def compared(rows: Sequence[Row], paper: Averages, scope: str) -> tuple[Pair, ...]:
    """The pairs of a scope, at the budgets with at least FEWEST of them."""
    pairs = []
    for printed in paper.rows:
        row = _CHOICE[scope](rows, printed)
        if row is not None:
            pairs.append(Pair(row, printed))
    counts = [pair.printed.share for pair in pairs]
    return tuple(pair for pair in pairs if counts.count(pair.printed.share) >= FEWEST)


def uncompared(table: Table, paper: Averages) -> list[str]:
    """Each printed method that has no pair at equal means at some budgets of the paper, with the reason."""
    found: dict[str, list[float]] = {}
    for printed in paper.rows:
        if _at_mean(table.rows, printed) is None:
            found.setdefault(printed.method, []).append(printed.share)
    return [_why(table.rows, paper, method, shares) for method, shares in found.items()]


def _why(rows: Sequence[Row], paper: Averages, method: str, shares: Sequence[float]) -> str:
    printed = [one for one in paper.rows if one.method == method]
    own = _own(rows, printed[0])
    where = "" if len(shares) == len(printed) else " at " + ", ".join(f"{100 * share:.1f} %" for share in shares)
    if not printed[0].ours:
        return f"{method} (no recipe here is it)"
    if not own:
        return f"{method} ({' or '.join(printed[0].ours)} was not run on all tasks)"
    means = ", ".join(f"{100 * share:.1f}" for share in sorted({row.mean_share for row in own}, reverse=True))
    return f"{method}{where} (its runs show a layer {means} % of the tokens)"


def _own(rows: Sequence[Row], printed: Average) -> list[Row]:
    return [row for row in rows if row.method in printed.ours and row.rel_mean is not None]


def _at_mean(rows: Sequence[Row], printed: Average) -> Row | None:
    return nearest(_own(rows, printed), printed.share)


def _as_asked(rows: Sequence[Row], printed: Average) -> Row | None:
    same = [row for row in _own(rows, printed) if not row.budget and _asks(row, printed.share)]
    return min(same, key=lambda row: abs(row.mean_share - printed.share), default=None)


def _asks(row: Row, share: float) -> bool:
    own = row.keep / row.tokens_before if isinstance(row.keep, int) else row.keep
    return own is not None and abs(own / share - 1) <= _SAME_BUDGET


def _before(rows: Sequence[Row], printed: Average) -> Row | None:
    return nearest([row for row in _own(rows, printed) if not row.inside], printed.share)


_CHOICE: dict[str, Callable[[Sequence[Row], Average], Row | None]] = {MEAN: _at_mean, ASKED: _as_asked, BEFORE: _before}


def _means(table: Table, rows: Sequence[Row]) -> dict[int, _Drawn]:
    """The rel_mean of rows as measured and in each draw, by id of the row; the same weights for all."""
    draws = drawn_rows(table, rows)
    return {id(row): _Drawn(row.rel_mean or 0.0, draws[:, place]) for place, row in enumerate(rows)}


def _figures(pairs: Sequence[Pair], means: dict[int, _Drawn]) -> tuple[dict[float, _Drawn], _Drawn]:
    """The correlation at each budget, and the mean absolute difference over all pairs."""
    order = {}
    for share in dict.fromkeys(pair.printed.share for pair in pairs):
        of_share = [pair for pair in pairs if pair.printed.share == share]
        measured, printed = _measured(of_share, means)
        order[share] = _Drawn(float(spearman(measured[0], printed)), spearman(measured[1:], printed))
    measured, printed = _measured(pairs, means)
    gaps = np.abs(measured - printed).mean(1)
    return order, _Drawn(float(gaps[0]), gaps[1:])


def _measured(pairs: Sequence[Pair], means: dict[int, _Drawn]) -> tuple[np.ndarray, np.ndarray]:
    """Measured [1 + draws, pairs], as measured first, and printed [pairs]."""
    columns = [np.concatenate([[found.value], found.draws]) for found in (means[id(pair.row)] for pair in pairs)]
    return np.stack(columns, axis=1), np.array([pair.printed.value for pair in pairs])


def _mean(figures: Sequence[_Drawn]) -> _Drawn:
    return _Drawn(float(np.mean([one.value for one in figures])), np.mean([one.draws for one in figures], axis=0))


def _agreement(
    scope: str, paper: Averages, pairs: tuple[Pair, ...], order: dict[float, _Drawn], gap: _Drawn
) -> Agreement:
    by_share = {share: one.estimate() for share, one in order.items()}
    return Agreement(scope, paper, pairs, _mean(list(order.values())).estimate(), by_share, gap.estimate())


def _over_tables(scope: str, found: Sequence[tuple[dict[float, _Drawn], _Drawn]]) -> Agreement:
    order = _mean([_mean(list(of_table.values())) for of_table, _ in found])
    return Agreement(scope, None, (), order.estimate(), {}, _mean([gap for _, gap in found]).estimate())
