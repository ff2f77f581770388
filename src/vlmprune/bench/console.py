"""What `vlmprune bench` shows: progress and the summary table. Bars in a terminal, one line per task in a log file."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Table as Sheet

from vlmprune.bench.runner import Progress
from vlmprune.bench.store import VANILLA
from vlmprune.bench.table import NOT_MEASURED, Row, Table

UNBOUND = 240  # columns of a log or a pipe, which has no width to fit


@contextmanager
def progress_bars(console: Console) -> Iterator[Callable[[Progress], None]]:
    """Two bars, all work and the present task; yields the callback for `run_bench`."""
    if not console.is_terminal:
        yield _lines(console)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Bars(*columns, console=console, transient=True) as bars:
        overall, current = bars.add_task(_fixed("all")), bars.add_task(_fixed("loading"))

        def show(at: Progress) -> None:
            bars.update(overall, completed=at.done, total=at.due)
            label = f"{at.model} · {at.task} · {at.variant}" if at.task else f"{at.model} done"
            bars.update(current, description=_fixed(label), completed=at.task_done, total=at.task_due or None)

        yield show


def _lines(console: Console) -> Callable[[Progress], None]:
    """A line when a task begins, for output that nobody watches live."""
    said: set[tuple[str, str]] = set()

    def show(at: Progress) -> None:
        if at.task and (at.model, at.task) not in said:
            said.add((at.model, at.task))
            share = 100 * at.done // max(1, at.due)
            console.print(f"{share:3d} %  {at.model} · {at.task}", highlight=False)

    return show


def _fixed(label: str, width: int = 44) -> str:
    """The label in a fixed width, so that the bars stand still."""
    return label[:width].ljust(width)


def print_tables(console: Console, tables: list[Table]) -> None:
    """One table per model: values, their intervals where there is room, and the two averages."""
    unbound = Console(file=console.file, width=UNBOUND)
    if not console.is_terminal:
        console = unbound
    sheets = [_sheet(table, wide=True) for table in tables]
    wide = all(unbound.measure(sheet).maximum <= console.width for sheet in sheets)
    for table, sheet in zip(tables, sheets, strict=True):
        console.print(sheet if wide else _sheet(table, wide=False))
        for note in table.notes():
            console.print(note, style="dim", highlight=False)
    console.print(
        f"Primary metric in percent{', its 95 % interval in brackets' if wide else ''}; * marks a difference to "
        "vanilla that is significant at 5 % after Holm's correction over the methods of the same budget. "
        f"{'abs_mean' if wide else 'abs (abs_mean)'}: mean of the values; {'rel_mean' if wide else 'rel (rel_mean)'}: "
        "mean of the ratios to the same model's vanilla run.",
        style="dim",
        highlight=False,
    )


def _sheet(table: Table, wide: bool) -> Sheet:
    counts = {cell.n for row in table.rows for cell in row.cells.values()}
    questions = str(counts.pop()) if len(counts) == 1 else f"{min(counts)} to {max(counts)}"
    title = f"{table.model}, {questions} questions per task"
    lines = box.HEAVY_HEAD if wide else box.SIMPLE_HEAD
    sheet = Sheet(title=title, title_justify="left", pad_edge=False, box=lines, padding=(0, 1 if wide else 0))
    sheet.add_column("method", no_wrap=wide, overflow="fold")
    for name in (
        "keep",
        "kept",
        "entering" if wide else "enter",
        *(task.removeprefix("synth-") for task in table.tasks),
        "abs_mean" if wide else "abs",
        "rel_mean" if wide else "rel",
    ):
        sheet.add_column(name, justify="right", no_wrap=True)
    previous = None
    several = len(table.rows) > len({row.method for row in table.rows})
    for row in table.rows:
        if previous not in (None, row.method) and (several or previous == VANILLA):
            sheet.add_section()
        sheet.add_row(*_line(table, row, previous, wide))
        previous = row.method
    return sheet


def _line(table: Table, row: Row, previous: str | None, wide: bool) -> list[str]:
    cells = []
    for task in table.tasks:
        cell = row.cells.get(task)
        if cell is not None and cell.unmeasured:
            cells.append(NOT_MEASURED)
        elif cell is None or math.isnan(cell.value.value):
            cells.append("-")
        else:
            span = f" [{cell.value.low:.0f}, {cell.value.high:.0f}]" if wide else ""
            cells.append(f"{cell.value.value:.0f}" + ("*" if cell.significant else "") + span)
    return [
        "" if row.method == previous else row.method,
        "" if row.keep is None or row.is_vanilla else str(row.keep),
        f"{row.tokens_kept:.1f}",
        f"{row.tokens_entering:.1f}",
        *cells,
        "-" if row.abs_mean is None else f"{row.abs_mean:.1f}",
        "-" if row.rel_mean is None else f"{row.rel_mean:.1f} %",
    ]
