"""Measured figures beside the printed ones of the papers, where model, method, budget, metric and protocol agree."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from vlmprune.bench.table import Cell, Row, Table
from vlmprune.published import VANILLA, Fact, facts, is_model
from vlmprune.report.comma_separated import figure, lines_of
from vlmprune.report.markdown import markdown_table
from vlmprune.report.tables import budget_words, number, signed_number

_ROUNDED = 0.15  # percent: 33.3 % is printed for a third, and authors' own settings differ in the last digit
NOTHING = (
    "Nothing measured here agrees in model, method, budget, metric and protocol with a figure that the papers print: "
    "run their models and tasks under their protocol."
)
_READING = (
    "Measured and printed value in the paper's unit, and measured minus printed. Only what agrees in model, method, "
    "budget, metric and protocol is here; versions of libraries, weights and data may still differ."
)


_HEAD = (
    *("model", "method", "keep", "recipe", "task", "protocol", "n"),
    *("paper", "table", "printed_model", "printed_method", "printed_budget", "printed_metric"),
    *("measured", "low", "high", "printed", "printed_std", "difference", "notes"),
)


@dataclass(frozen=True)
class Beside:
    """A measured and a printed figure.

    Attributes:
        table: of the measured one, with its row and cell.
        fact: the printed one.
        value, low, high: measured, with its 95 % interval, in the paper's unit.
    """

    table: Table
    row: Row
    cell: Cell
    fact: Fact
    value: float
    low: float
    high: float

    @property
    def difference(self) -> float:
        """Measured minus printed."""
        return self.value - self.fact.printed.value

    @property
    def notes(self) -> list[str]:
        """What keeps the two from being the same measurement, and the paper's known errors."""
        whole = self.fact.same.n
        part = [f"measured on {self.cell.n} of {whole} questions"] if whole is not None and whole != self.cell.n else []
        return [*part, *self.fact.notes]


def beside(tables: Sequence[Table]) -> list[Beside]:
    """Every pair that agrees, in the order of the tables and of the papers."""
    return [pair for table in tables for row in table.rows for pair in _of_row(table, row)]


def _of_row(table: Table, row: Row) -> Iterator[Beside]:
    for fact in facts():
        cell = row.cells.get(fact.same.task)
        if cell is None or not is_model(table.model, fact.printed.model):
            continue
        result = cell.result
        right_way = result.method == fact.method and result.positions is None
        same = fact.same.metric in ("", result.metric) and result.protocol.partition("/")[0] == fact.same.protocol
        if right_way and same and same_budget(fact, row):
            low, value, high = (fact.same.factor * x for x in (cell.value.low, cell.value.value, cell.value.high))
            yield Beside(table, row, cell, fact, value, low, high)


def same_budget(fact: Fact, row: Row) -> bool:
    """Whether a row has the budget of a printed value: "192 tokens", "33.3%"; a chain carries its own."""
    if fact.method == VANILLA or row.keep is None:
        return True
    if row.budget and row.inside:  # papers count each method's own way, which is another number of tokens inside
        return False
    count, _, unit = fact.printed.budget.partition(" ")
    if unit == "tokens":
        tokens = row.keep if isinstance(row.keep, int) else round(row.keep * row.tokens_before)
        return tokens == int(count)
    if count.endswith("%") and not unit and isinstance(row.keep, float):
        return abs(100 * row.keep - float(count[:-1])) < _ROUNDED
    return False


def beside_markdown(pairs: Sequence[Beside]) -> str:
    """One document: a table for each model, with the notes below."""
    parts = ["# Measured beside printed", _READING if pairs else NOTHING]
    for model in dict.fromkeys(pair.table.model for pair in pairs):
        of_model = [pair for pair in pairs if pair.table.model == model]
        notes = list(dict.fromkeys(note for pair in of_model for note in pair.notes))
        head = ("method", "keep", "paper", "metric", "n", "measured", "printed", "difference", "notes")
        parts += [f"## {model}", markdown_table(head, [_line(pair, notes) for pair in of_model])]
        if notes:
            parts.append("\n".join(f"{place}. {note}" for place, note in enumerate(notes, start=1)))
    return "\n\n".join(parts) + "\n"


def _line(pair: Beside, notes: Sequence[str]) -> list[str]:
    printed = pair.fact.printed
    return [
        pair.row.method,
        "" if pair.row.is_vanilla else budget_words(pair.row.asked),
        f"{printed.source}, table {printed.table}",
        printed.metric,
        str(pair.cell.n),
        f"{number(pair.value)} [{number(pair.low)}, {number(pair.high)}]",
        number(printed.value) + (f" ± {printed.std}" if printed.std else ""),
        signed_number(pair.difference),
        ", ".join(str(notes.index(note) + 1) for note in pair.notes),
    ]


def beside_csv(pairs: Sequence[Beside]) -> str:
    """One line per pair."""
    return lines_of(
        _HEAD,
        (
            (
                *(pair.table.model, pair.row.method, "" if pair.row.keep is None else pair.row.keep, pair.row.recipe),
                *(pair.fact.same.task, pair.cell.result.protocol, pair.cell.n),
                *pair.fact.printed[:6],
                *map(figure, (pair.value, pair.low, pair.high, pair.fact.printed.value)),
                *(pair.fact.printed.std, figure(pair.difference), "; ".join(pair.notes)),
            )
            for pair in pairs
        ),
    )
