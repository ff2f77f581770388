"""Which rows stand at a glance: by budget as asked, and apart from them the recipes that carry budgets of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vlmprune.bench.table import Row, Table
from vlmprune.report.means import WORDS, EqualMeans, equal_means
from vlmprune.report.tables import FLAGS, SIGNIFICANT, Block, flags


@dataclass(frozen=True)
class Glance:
    """A table with a few columns for each level.

    Attributes:
        titles: of the levels.
        lines: methods, each with its row at every level, None where it has none.
    """

    titles: tuple[str, ...]
    lines: tuple[tuple[str, tuple[Row | None, ...]], ...]

    @property
    def parts(self) -> list[list[tuple[str, tuple[Row | None, ...]]]]:
        """Vanilla, which stays at the top, and the others."""
        whole = [line for line in self.lines if _is_vanilla(line[1])]
        return [part for part in (whole, [line for line in self.lines if line not in whole]) if part]


def _is_vanilla(rows: Sequence[Row | None]) -> bool:
    return any(row is not None and row.is_vanilla for row in rows)


@dataclass(frozen=True)
class Overview:
    """One of the tables that a reader can choose from.

    Attributes:
        title: of the choice.
        words: above the table; "" where nothing needs to be said.
        table: the table.
        missing: sentences below it.
    """

    title: str
    words: str
    table: Glance
    missing: tuple[str, ...] = ()


def overviews(table: Table, parts: Sequence[Block]) -> list[Overview]:
    """At equal means first, where these differ from the budgets."""
    means, asked = equal_means(table), as_asked(parts)
    found = [] if means is None else [Overview("equal mean tokens per layer", WORDS, at_means(means), means.missing)]
    return found if asked is None else [*found, Overview("budgets as asked", "", asked)]


def as_asked(parts: Sequence[Block]) -> Glance | None:
    """The blocks of a budget side by side; None where all recipes have their own."""
    named = [block for block in parts if block.asked is not None]
    names = dict.fromkeys(row.method for block in named for row in block.rows)
    lines = tuple((name, tuple(_of_method(block, name) for block in named)) for name in names)
    return Glance(tuple(f"keep {block.title}" for block in named), lines) if named else None


def _of_method(block: Block, name: str) -> Row | None:
    return next((row for row in block.rows if row.method == name), None)


def at_means(means: EqualMeans) -> Glance:
    return Glance(tuple(f"mean {level.title}" for level in means.levels), means.lines)


def own_budgets(table: Table) -> list[Row]:
    """The recipes that carry budgets of their own."""
    return [row for row in table.rows if row.asked is None and not row.is_vanilla]


def marks_of(block: Block) -> list[tuple[str, str]]:
    """The signs that stand in a block's table, with what they mean."""
    cells = [cell for row in block.rows for cell in row.cells.values()]
    used = {sign for cell in cells for sign in flags(cell) + (SIGNIFICANT if cell.significant else "")}
    return [(sign, meaning) for sign, meaning in FLAGS.items() if sign in used]
