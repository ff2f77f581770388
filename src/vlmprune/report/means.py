"""Methods at equal mean tokens per layer, whatever their budgets count.

A method that cuts inside the language model shows all tokens to its first layers. So it is not at the same cost as one
that cuts before the model to the same number of tokens: it is compared where as many tokens enter a layer on average.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median_high

from vlmprune.bench.table import Row, Table
from vlmprune.core.budget import Keep
from vlmprune.report.tables import blocks, budget_words

NEAR = 0.15  # of a mean; small models cannot cut finer than at a layer, and pictures shrink in whole rows of tokens


@dataclass(frozen=True)
class Level:
    """A budget, as a mean.

    Attributes:
        keep: the budget.
        tokens: that enter a layer if the budget is met before the language model.
    """

    keep: Keep
    tokens: float

    @property
    def title(self) -> str:
        return budget_words((self.keep, ""))


@dataclass(frozen=True)
class EqualMeans:
    """A model's methods at each level.

    Attributes:
        levels: from the largest share down.
        lines: of vanilla and each method that has a row at some level, its rows by level, None where it has none.
        missing: in sentences, the methods without a row at some levels, with the means that they have.
    """

    levels: tuple[Level, ...]
    lines: tuple[tuple[str, tuple[Row | None, ...]], ...]
    missing: tuple[str, ...]


WORDS = (
    "At equal mean tokens per layer: a column has the run of each method whose mean tokens per layer are nearest to "
    f"that share, if they are within {100 * NEAR:.0f} % of it. A method that cuts inside the language model must leave "
    "fewer tokens for it, since its first layers see all of them."
)


def nearest(rows: Sequence[Row], share: float) -> Row | None:
    """The row whose mean share of the tokens is nearest to a share, if it is within NEAR of it."""
    best = min(rows, key=lambda row: abs(row.mean_share - share), default=None)
    return best if best is not None and abs(best.mean_share / share - 1) <= NEAR else None


def equal_means(table: Table) -> EqualMeans | None:
    """The methods at equal means; None where no method cuts inside the model or no level is known."""
    pruned = [row for row in table.rows if not row.is_vanilla]
    levels = levels_of(table)
    if not levels or not any(row.inside for row in pruned):
        return None
    lines: list[tuple[str, tuple[Row | None, ...]]] = []
    missing: dict[tuple[str, ...], list[str]] = {}
    for method in dict.fromkeys(row.method for row in pruned):
        own = [row for row in pruned if row.method == method]
        found = tuple(nearest(own, level.tokens / own[0].tokens_before) for level in levels)
        if any(found):
            lines.append((method, found))
        without = tuple(level.title for level, row in zip(levels, found, strict=True) if row is None)
        if without:
            missing.setdefault(without, []).append(f"{method} ({_span(own)})")
    vanilla = [("vanilla", (table.vanilla,) * len(levels))] if table.vanilla is not None else []
    said = tuple(
        f"No run near a mean of {' or '.join(titles)}: {', '.join(methods)}." for titles, methods in missing.items()
    )
    return EqualMeans(levels, (*vanilla, *lines), said)


def levels_of(table: Table) -> tuple[Level, ...]:
    """Of the budgets that some method meets before the language model."""
    met: dict[Keep, list[float]] = {}
    for block in blocks(table):
        for row in block.pruned:
            if row.keep is not None and not row.inside:
                met.setdefault(row.keep, []).append(row.tokens_entering)
    return tuple(Level(keep, median_high(tokens)) for keep, tokens in met.items())


def _span(rows: Sequence[Row]) -> str:
    """The mean shares of a method's rows: "33.4 to 50.0 %"."""
    shares = sorted(row.mean_share for row in rows)
    return " to ".join(dict.fromkeys(f"{100 * share:.1f}" for share in (shares[0], shares[-1]))) + " %"
