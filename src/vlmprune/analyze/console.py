"""Progress of `vlmprune analyze`: a bar in a terminal, a line for each step in a log."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from vlmprune.analyze.subject import Tell


@contextmanager
def progress(console: Console) -> Iterator[Tell]:
    """Yields what a study tells its progress."""
    if not console.is_terminal:
        said: set[str] = set()

        def line(what: str, done: int, due: int) -> None:
            if what not in said:
                said.add(what)
                console.print(f"{what}: {due}", highlight=False, soft_wrap=True)

        yield line
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bars:
        tasks: dict[str, int] = {}

        def show(what: str, done: int, due: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what)
            bars.update(tasks[what], completed=done, total=due)  # type: ignore[arg-type]

        yield show
