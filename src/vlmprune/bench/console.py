"""What `vlmprune bench` shows in a terminal: progress bars and the summary table. Silent bars where there is none."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Table as Sheet

from vlmprune.bench.runner import Progress
from vlmprune.bench.table import Row, Table


@contextmanager
def progress_bars(console: Console) -> Iterator[Callable[[Progress], None]]:
    """Two bars, all work and the present task; yields the callback for `run_bench`."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Bars(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        overall, current = bars.add_task(_fixed("all")), bars.add_task(_fixed("loading"))

        def show(at: Progress) -> None:
            bars.update(overall, completed=at.done, total=at.due)
            label = f"{at.model} · {at.task} · {at.variant}" if at.task else f"{at.model} done"
            bars.update(current, description=_fixed(label), completed=at.task_done, total=at.task_due or None)

        yield show


def _fixed(label: str, width: int = 44) -> str:
    """The label in a fixed width, so that the bars stand still."""
    return label[:width].ljust(width)


def print_tables(console: Console, tables: list[Table]) -> None:
    """One table a model: values with half-widths of the intervals, and the two averages."""
    for table in tables:
        console.print(_sheet(table))
        for note in table.notes():
            console.print(note, style="dim", highlight=False)
    console.print(
        "Primary metric in percent, ± half of its 95 % bootstrap interval. "
        "abs: mean of the values; rel: mean of the ratios to the same model's vanilla run.",
        style="dim",
        highlight=False,
    )


def _sheet(table: Table) -> Sheet:
    counts = {cell.n for row in table.rows for cell in row.cells.values()}
    questions = str(counts.pop()) if len(counts) == 1 else f"{min(counts)} to {max(counts)}"
    sheet = Sheet(title=f"{table.model}, {questions} questions a task", title_justify="left", pad_edge=False)
    sheet.add_column("method", no_wrap=True)
    for name in ("keep", "kept", "entering", *(task.removeprefix("synth-") for task in table.tasks), "abs", "rel"):
        sheet.add_column(name, justify="right", no_wrap=True)
    previous = None
    for row in table.rows:
        if previous not in (None, row.method):
            sheet.add_section()
        sheet.add_row(*_line(table, row, previous))
        previous = row.method
    return sheet


def _line(table: Table, row: Row, previous: str | None) -> list[str]:
    cells = []
    for task in table.tasks:
        cell = row.cells.get(task)
        if cell is None or math.isnan(cell.value.value):
            cells.append("-")
        else:
            cells.append(f"{cell.value.value:.0f} ±{(cell.value.high - cell.value.low) / 2:.0f}")
    return [
        "" if row.method == previous else row.method,
        "" if row.keep is None or row.is_vanilla else str(row.keep),
        f"{row.tokens_kept:.1f}",
        f"{row.tokens_entering:.1f}",
        *cells,
        "-" if row.abs_mean is None else f"{row.abs_mean:.1f}",
        "-" if row.rel_mean is None else f"{row.rel_mean:.1f} %",
    ]
