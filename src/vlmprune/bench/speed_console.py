"""What `vlmprune bench --speed` shows: a line for each point, then the tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from vlmprune.bench.speed import SpeedProgress
from vlmprune.bench.speed_table import Sheet

_UNBOUND = 400  # columns of a log or a pipe, which has no width to fit


def progress_lines(console: Console) -> Callable[[SpeedProgress], None]:
    """A line when a point begins, and in a terminal its turns."""

    def show(at: SpeedProgress) -> None:
        if at.turn == 0 or console.is_terminal:
            where = f"{at.model} · {at.visual} visual tokens · batch {at.batch}"
            console.print(f"{where} · turn {at.turn + 1} of {at.due}", highlight=False, soft_wrap=True)

    return show


def print_sheets(console: Console, sheets: Sequence[Sheet]) -> None:
    """Columns that hold nothing are left out; a table that is too wide for a terminal folds its cells."""
    if not console.is_terminal:
        console = Console(file=console.file, width=_UNBOUND)
    for sheet in sheets:
        filled = [k for k in range(len(sheet.head)) if any(line[k] not in ("", "–") for line in sheet.lines)]
        table = Table(title=sheet.title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        for place in filled:
            table.add_column(sheet.head[place], justify="right" if place else "left", overflow="fold")
        for line in sheet.lines:
            table.add_row(*(line[k] for k in filled))
        console.print(table)
        for note in sheet.notes:
            console.print(note, style="dim", highlight=False, soft_wrap=True)
