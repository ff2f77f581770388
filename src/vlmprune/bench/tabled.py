"""Tables over the tasks that papers' tables of accuracy ask the like of."""

from __future__ import annotations

from vlmprune.bench.compare import tables_of
from vlmprune.bench.table import Table
from vlmprune.tasks import generated_tasks


def as_tabled(table: Table) -> Table:
    """The table over the tasks that printed tables ask the like of."""
    others = {name for name, task in generated_tasks().items() if not task.tabled}
    if not others & {*table.tasks} or others >= {*table.tasks}:
        return table
    cells = (cell for row in table.rows for task, cell in row.cells.items() if task not in others)
    return tables_of(result for cell in cells for result in cell.results)[0]
