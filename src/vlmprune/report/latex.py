"""Tables of a comparison as LaTeX."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from vlmprune.bench.table import Table
from vlmprune.report.tables import (
    MISSING,
    SIGNIFICANT,
    Block,
    blocks,
    interval,
    notes,
    number,
    p_value,
    percent,
    row_name,
    signed_number,
    spread_words,
    value_words,
)

_ESCAPES = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "†": r"\textsuperscript{\dag}",
    "‡": r"\textsuperscript{\ddag}",
    "–": "--",
    "−": "$-$",
}


def escape(text: str) -> str:
    """Text with LaTeX's special characters made printable."""
    return "".join(_ESCAPES.get(character, character) for character in text)


def latex(tables: Sequence[Table]) -> str:
    r"""Two `table*` for each model and budget, values and differences. Needs `\usepackage{booktabs}`.

    Nothing is bold: which method is best is a question of chance too, which the rankings answer (`bench.ranks`).
    """
    parts = [r"% Needs \usepackage{booktabs}. Made by vlmprune report."]
    for table in tables:
        for block in blocks(table):
            parts.append(_values(table, block))
            if block.compared:
                parts.append(_differences(table, block))
    return "\n\n".join(parts) + "\n"


def _values(table: Table, block: Block) -> str:
    lines = []
    for row in block.rows:
        values, below, spreads = [], [], []
        for task in table.tasks:
            cell = row.cells.get(task)
            text = escape(MISSING if cell is None else value_words(cell))
            ratio = "" if cell is None else rf" {{\tiny ({escape(percent(cell.ratio))})}}"
            values.append(text + ratio)
            below.append("" if cell is None else _tiny(interval(cell.value)))
            spreads.append("" if cell is None or cell.spread is None else _tiny(spread_words(cell.spread)))
        name = escape(row_name(block, row))
        counts = [number(row.tokens_kept), number(row.tokens_entering)]
        means = [escape(number(row.abs_mean)), escape(percent(row.rel_mean))]
        lines += [[name, *counts, *values, *means], ["", "", "", *below, "", ""]]
        if any(spreads):
            means = [_tiny(spread_words(spread)) if spread else "" for spread in (row.abs_spread, row.rel_spread)]
            lines.append(["", "", "", *spreads, *means])
    said = " ".join(notes([replace(table, rows=block.rows)]))
    caption = (
        f"{table.model}, keep {block.title}. Primary metric in percent, its ratio to vanilla in brackets, below it the "
        f"95 % interval. {said}"
    )
    has_vanilla = block.rows[0].is_vanilla and len(block.rows) > 1
    return _table(
        ("method", "kept", "entering", *table.tasks, "abs_mean", "rel_mean"), lines, caption, 2 if has_vanilla else 0
    )


def _differences(table: Table, block: Block) -> str:
    lines = []
    for row in block.rows:
        if row.is_vanilla:
            continue
        values, below = [], []
        for task in table.tasks:
            cell = row.cells.get(task)
            diff = None if cell is None else cell.diff
            text = escape(signed_number(diff.value if diff else None))
            values.append(text + (SIGNIFICANT if cell and cell.significant else ""))
            below.append(_tiny(f"{interval(diff, signed=True)}, p {p_value(cell.p_holm)}") if cell and diff else "")
        lines += [[escape(row_name(block, row)), *values], ["", *below]]
    caption = (
        f"{table.model}, keep {block.title}. Difference to vanilla on the same questions, in points, below it the 95 % "
        f"interval and the p-value after Holm's correction over the methods. {SIGNIFICANT} marks p < 0.05."
    )
    return _table(("method", *table.tasks), lines, caption, 0)


def _tiny(text: str) -> str:
    return rf"{{\tiny {escape(text)}}}"


def _table(head: Sequence[str], lines: Sequence[Sequence[str]], caption: str, first: int) -> str:
    """A `table*`; a rule follows the first `first` lines."""
    body = [" & ".join(cells) + r" \\" for cells in lines]
    return "\n".join(
        [
            r"\begin{table*}",
            r"\centering\footnotesize\setlength{\tabcolsep}{3pt}",
            rf"\caption{{{escape(caption.strip())}}}",
            rf"\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}",
            r"\toprule",
            " & ".join(escape(text) for text in head) + r" \\",
            r"\midrule",
            *body[:first],
            *([r"\midrule"] if first else []),
            *body[first:],
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table*}",
        ]
    )
