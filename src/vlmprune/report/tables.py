"""Tables of a comparison as Markdown and CSV (`report.latex` has the third form).

All of them say the same: per model and budget, every method on every task with its value, the ratio to the same model's
unpruned run, the 95 % interval and both token counts, and the paired differences. Nothing in them depends on when or
where a run was made, so the same records give the same bytes.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from vlmprune.bench.stats import Estimate
from vlmprune.bench.table import NOT_MEASURED, TOO_GOOD, VAGUE, Cell, Row, Table
from vlmprune.core.budget import Keep

MISSING = "–"
FLAGS = {
    "†": f"above {TOO_GOOD:.0f} % of vanilla: look for chance, a small n, or a weakness of the unpruned model",
    "‡": f"more than {VAGUE:.0f} % of the replies hold no answer of the asked kind; they count as wrong",
}
OWN_BUDGETS = "as each recipe says"


@dataclass(frozen=True)
class Block:
    """The rows of a model that had the same budget. The model's vanilla row comes first, where there is one."""

    keep: Keep | None
    rows: tuple[Row, ...]

    @property
    def title(self) -> str:
        return keep_words(self.keep)


def keep_words(keep: Keep | None) -> str:
    """A budget for people: "33.3 %", "64 tokens", or, for recipes that name their own, "as each recipe says"."""
    if keep is None:
        return OWN_BUDGETS
    return f"{keep} tokens" if isinstance(keep, int) else f"{100 * keep:.1f} %"


def blocks(table: Table) -> list[Block]:
    """The table's rows by budget, from the largest share down, numbers of tokens after shares, recipes' own last."""
    vanilla = [row for row in table.rows if row.is_vanilla]
    pruned = [row for row in table.rows if not row.is_vanilla]
    keeps = sorted({row.keep for row in pruned}, key=_keep_order)
    if not keeps:
        return [Block(1.0, tuple(vanilla))] if vanilla else []
    return [Block(keep, (*vanilla, *(row for row in pruned if row.keep == keep))) for keep in keeps]


def _keep_order(keep: Keep | None) -> tuple[int, float]:
    return (2, 0.0) if keep is None else (int(isinstance(keep, int)), -float(keep))


def flags(cell: Cell) -> str:
    """The signs of `FLAGS` that this cell earns."""
    return ("†" if cell.too_good else "") + ("‡" if cell.vague else "")


def interval(estimate: Estimate, signed: bool = False) -> str:
    """ "[83.0, 90.8]" """
    form = number if not signed else signed_number
    return f"[{form(estimate.low)}, {form(estimate.high)}]"


def number(value: float | None, digits: int = 1) -> str:
    """A figure with a fixed number of digits, a dash where there is none; never a negative zero."""
    if value is None or value != value:
        return MISSING
    return f"{value:.{digits}f}" if round(value, digits) else f"{0:.{digits}f}"


def value_words(cell: Cell) -> str:
    """A cell's value with its flags, "not measured" where a judge is missing."""
    return NOT_MEASURED if cell.unmeasured else number(cell.value.value) + flags(cell)


def signed_number(value: float | None) -> str:
    """ "+1.2", "−3.4" (a true minus sign), "0.0"."""
    text = number(value)
    if text == MISSING or not float(text):
        return text
    return f"−{text[1:]}" if text.startswith("-") else f"+{text}"


def percent(value: float | None) -> str:
    text = number(value)
    return text if text == MISSING else f"{text} %"


def flops_share(block: Block, row: Row, count: str = "total") -> str:
    """Operations as a share of vanilla's in the same block; a dash where the model's shape or a cost is not known.

    Args:
        count: a field of `Flops`: "total" by our formula, "papers" or "papers_gated" by the papers'.
    """
    base = next((other.flops for other in block.rows if other.is_vanilla), None)
    if base is None or row.flops is None:
        return MISSING
    own = getattr(row.flops, count)
    return percent(None if own is None else 100 * own / getattr(base, count))


def notes(tables: Sequence[Table]) -> list[str]:
    """What a reader must know beside the figures.

    The tasks left out of the averages, how the question was read, and what the flags mean.
    """
    said = [
        f"{table.model}: {task} is left out of the averages ({why})."
        for table in tables
        for task, why in table.left_out.items()
    ]
    said += [f"{table.model}: {sentence}" for table in tables for sentence in (*table.texts(), *table.judges())]
    used = {sign for cell in _cells(tables) for sign in flags(cell)}
    return said + [f"{sign} {meaning}." for sign, meaning in FLAGS.items() if sign in used]


def _cells(tables: Iterable[Table]) -> Iterable[Cell]:
    return (cell for table in tables for row in table.rows for cell in row.cells.values())


# ---------------------------------------------------------------- Markdown

_READING = """\
A cell holds the task's primary metric in percent, its ratio to the same model's unpruned run, and the 95 % bootstrap
interval. *abs* is the mean of the metrics and *rel* the mean of the ratios, over the same tasks. *kept* is the number
of visual tokens left after the last cut; *entering* is the number that enters a layer of the language model, averaged
over its layers. *FLOPs* are operations up to the first new token as a share of the unpruned model's, by our formula
(encoder, projector, prefill, selection); *4nd²+2n²d+2ndm* and *+3ndm* are the papers' counts of the prefill alone."""


def markdown(tables: Sequence[Table]) -> str:
    """One Markdown document with all tables."""
    parts = ["# Visual token pruning: results", _READING]
    for table in tables:
        parts += [f"## {table.model}", _sizes(table), _overview(table)]
        for block in blocks(table):
            parts += [f"### {table.model}, keep {block.title}", _values(table, block)]
            if any(cell.diff for row in block.rows for cell in row.cells.values()):
                parts += ["Difference to vanilla on the same questions, in points, with its 95 % interval:"]
                parts += [_differences(table, block)]
    if said := notes(tables):
        parts += ["## Notes", "\n".join(f"- {note}" for note in said)]
    return "\n\n".join(parts) + "\n"


def _sizes(table: Table) -> str:
    """Which metric a task has, and on how many questions."""
    items = []
    for task in table.tasks:
        cell = next(row.cells[task] for row in table.rows if task in row.cells)
        items.append(f"{task}: {cell.result.metric}, n = {cell.n}, chance {cell.result.chance:.1f}")
    return "; ".join(items) + "."


def _overview(table: Table) -> str:
    """One row per method; for each budget the means and the tokens."""
    shown = blocks(table)
    names = list(dict.fromkeys(row.method for block in shown for row in block.rows))
    head = ["method", *(title for block in shown for title in (f"{block.title}: abs (rel)", "kept / entering"))]
    lines = []
    for name in names:
        found = [[row for row in block.rows if row.method == name] for block in shown]
        pairs = ((", ".join(map(_mean, rows)), ", ".join(map(_tokens, rows))) for rows in found)
        lines.append([name, *(text or MISSING for pair in pairs for text in pair)])
    return _markdown_table(head, lines)


def _mean(row: Row) -> str:
    return f"{number(row.abs_mean)} ({percent(row.rel_mean)})"


def _tokens(row: Row) -> str:
    return f"{number(row.tokens_kept)} / {number(row.tokens_entering)}"


def _values(table: Table, block: Block) -> str:
    head = ["method", "kept", "entering", "FLOPs", "4nd²+2n²d+2ndm", "+3ndm", *table.tasks, "abs", "rel"]
    return _markdown_table(head, [_value_line(table, block, row) for row in block.rows])


def _value_line(table: Table, block: Block, row: Row) -> list[str]:
    cells = [_value_cell(row.cells.get(task)) for task in table.tasks]
    return [
        row_name(block, row),
        number(row.tokens_kept),
        number(row.tokens_entering),
        *(flops_share(block, row, count) for count in ("total", "papers", "papers_gated")),
        *cells,
        number(row.abs_mean),
        percent(row.rel_mean),
    ]


def row_name(block: Block, row: Row) -> str:
    """The method; the whole recipe where rows of a block differ in their budgets."""
    return row.recipe if block.keep is None else row.method


def _value_cell(cell: Cell | None) -> str:
    if cell is None:
        return MISSING
    if cell.unmeasured:
        return NOT_MEASURED
    return f"{value_words(cell)} ({percent(cell.ratio)}) {interval(cell.value)}"


def _differences(table: Table, block: Block) -> str:
    rows = [row for row in block.rows if not row.is_vanilla]
    lines = [[row_name(block, row), *(_difference_cell(row.cells.get(task)) for task in table.tasks)] for row in rows]
    return _markdown_table(["method", *table.tasks], lines)


def _difference_cell(cell: Cell | None) -> str:
    if cell is None or cell.diff is None:
        return MISSING
    return f"{signed_number(cell.diff.value)} {interval(cell.diff, signed=True)}"


def _markdown_table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    def line(cells: Iterable[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    rule = "| " + " | ".join("---" if k == 0 else "---:" for k in range(len(head))) + " |"
    return "\n".join([line(head), rule, *(line(cells) for cells in lines)])


# ---------------------------------------------------------------- CSV

_COLUMNS: dict[str, Callable[[Table, Row, str, Cell], object]] = {
    "model": lambda table, row, task, cell: table.model,
    "method": lambda table, row, task, cell: row.method,
    "keep": lambda table, row, task, cell: "" if row.keep is None else row.keep,
    "recipe": lambda table, row, task, cell: row.recipe,
    "task": lambda table, row, task, cell: task,
    "dimension": lambda table, row, task, cell: cell.result.dimension,
    "metric": lambda table, row, task, cell: cell.result.metric,
    "chance": lambda table, row, task, cell: _figure(cell.result.chance),
    "in_averages": lambda table, row, task, cell: int(task in table.averaged),
    "n": lambda table, row, task, cell: cell.n,
    "units": lambda table, row, task, cell: cell.units,
    "value": lambda table, row, task, cell: _figure(cell.value.value),
    "low": lambda table, row, task, cell: _figure(cell.value.low),
    "high": lambda table, row, task, cell: _figure(cell.value.high),
    "ratio": lambda table, row, task, cell: _figure(cell.ratio),
    "difference": lambda table, row, task, cell: _figure(cell.diff and cell.diff.value),
    "difference_low": lambda table, row, task, cell: _figure(cell.diff and cell.diff.low),
    "difference_high": lambda table, row, task, cell: _figure(cell.diff and cell.diff.high),
    "unparsed": lambda table, row, task, cell: _figure(cell.unparsed),
    "tokens_before": lambda table, row, task, cell: _figure(row.tokens_before),
    "tokens_kept": lambda table, row, task, cell: _figure(row.tokens_kept),
    "tokens_entering": lambda table, row, task, cell: _figure(row.tokens_entering),
    "gflops": lambda table, row, task, cell: _figure(_billions(row.flops and row.flops.total)),
    "gflops_papers": lambda table, row, task, cell: _figure(_billions(row.flops and row.flops.papers)),
    "gflops_papers_gated": lambda table, row, task, cell: _figure(_billions(row.flops and row.flops.papers_gated)),
    "flags": lambda table, row, task, cell: flags(cell),
}


def _billions(value: float | None) -> float | None:
    return None if value is None else value / 1e9


def _figure(value: float | None) -> str:
    return "" if value is None else number(value, 3).replace(MISSING, "")


def comma_separated(tables: Sequence[Table]) -> str:
    """One line per model, method, budget and task; percent, points and tokens with three digits."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for table in tables:
        for row in table.rows:
            for task in table.tasks:
                if task in row.cells:
                    writer.writerow(column(table, row, task, row.cells[task]) for column in _COLUMNS.values())
    return out.getvalue()


def categories(tables: Sequence[Table]) -> str:
    """Plain accuracy of each question type, comma-separated, one line per model, method, budget, task and type."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(("model", "method", "keep", "recipe", "task", "category", "accuracy"))
    for table in tables:
        for row in table.rows:
            keep = "" if row.keep is None else row.keep
            for task in table.tasks:
                for name, value in row.cells[task].categories.items() if task in row.cells else ():
                    writer.writerow((table.model, row.method, keep, row.recipe, task, name, _figure(value)))
    return out.getvalue()
