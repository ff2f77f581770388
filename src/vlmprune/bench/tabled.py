"""Tables over the tasks that papers' tables of accuracy ask the like of."""

from __future__ import annotations

from vlmprune.bench.compare import tables_of
from vlmprune.bench.table import Table
from vlmprune.tasks import generated_tasks


def printed_kinds(table: Table) -> tuple[str, ...]:
    """Its tasks that printed tables ask the like of; all where it has no such task."""
    others = {name for name, task in generated_tasks().items() if not task.tabled}
    return tuple(task for task in table.tasks if task not in others) or table.tasks


def as_tabled(table: Table) -> Table:
    """The table over these tasks, computed anew where it has others."""
    tasks = printed_kinds(table)
    if tasks == table.tasks:
        return table
    cells = (cell for row in table.rows for task, cell in row.cells.items() if task in tasks)
    return tables_of(result for cell in cells for result in cell.results)[0]
