"""What the benchmark asks: the generated tasks, the field's data sets, and any file of the user's own."""

from __future__ import annotations

import difflib
from functools import cache
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

from vlmprune.core.errors import UserError
from vlmprune.tasks import sets
from vlmprune.tasks.frames import framed, read_framed
from vlmprune.tasks.generated import GeneratedTask
from vlmprune.tasks.own import looks_like_data, own_task
from vlmprune.tasks.pictured import PICTURED, pictured
from vlmprune.tasks.task import Task


@cache
def built_in_tasks() -> dict[str, Task]:
    """The tasks of `tasks/sets` by name: the generated ones in their order, then the data sets."""
    modules = [import_module(f"{sets.__name__}.{module.name}") for module in iter_modules(sets.__path__)]
    found = [task for module in modules for task in vars(module).values() if isinstance(task, Task)]
    found.sort(key=lambda task: not isinstance(task, GeneratedTask))
    return {task.name: task for task in found}


def generated_tasks() -> dict[str, GeneratedTask]:
    """The tasks that need no data."""
    return {name: task for name, task in built_in_tasks().items() if isinstance(task, GeneratedTask)}


def default_tasks() -> tuple[str, ...]:
    """The names of the generated tasks that are asked where none are named."""
    return tuple(name for name, task in generated_tasks().items() if task.default)


def tabled_tasks() -> tuple[str, ...]:
    """The names of the generated tasks that are like what the papers' tables ask."""
    return tuple(name for name, task in generated_tasks().items() if task.tabled)


def get_task(name: str) -> Task:
    """The task of that name, or a task made of a file, folder or hub data set.

    Args:
        name: of a task about videos with `@16frames` behind it, with that many frames of each; with `@pictures` behind
            it, with the frames as pictures.

    Raises:
        UserError: there is none.
    """
    tasks = built_in_tasks()
    if name in tasks:
        return tasks[name]
    if name.endswith(PICTURED) and not Path(name).expanduser().exists():
        return pictured(get_task(name.removesuffix(PICTURED)))
    if (asked := read_framed(name)) is not None and not Path(name).expanduser().exists():
        return framed(get_task(asked[0]), asked[1])
    if looks_like_data(name):
        return own_task(name)
    close = difflib.get_close_matches(name, tasks, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"choose from {', '.join(tasks)}, or give a file of your own."
    raise UserError(f"There is no task {name!r}: {hint}")


__all__ = ["Task", "built_in_tasks", "default_tasks", "generated_tasks", "get_task", "tabled_tasks"]
