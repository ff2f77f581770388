"""The papers' printed figures, and what they are called here (`README.md` says where they come from)."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePath
from typing import NamedTuple

from vlmprune.core.recipe import format_method, lacks_budget, recipe

VANILLA = "vanilla"
_HERE = Path(__file__).parent
_ANY_KEEP = 0.5  # a budget to read a recipe with that carries none


class Printed(NamedTuple):
    """One value of a paper.

    Attributes:
        source, table: the paper, and the number of its table.
        model, method, budget, metric: as the paper calls them.
        value: in the paper's unit.
        std: its standard deviation as printed, or "".
        note: a caveat of this value, or "".
    """

    source: str
    table: str
    model: str
    method: str
    budget: str
    metric: str
    value: float
    std: str
    note: str


class Same(NamedTuple):
    """What a metric of a paper is here.

    Attributes:
        task: ours.
        metric: ours, or "" for the task's primary one.
        factor: from our percent to the paper's unit.
        protocol: under which it was measured.
        n: questions in the paper; None where it is not known.
    """

    task: str
    metric: str
    factor: float
    protocol: str
    n: int | None


@dataclass(frozen=True)
class Fact:
    """A printed value with what it is called here.

    Attributes:
        printed: the value.
        method: ours, in standard spelling without a budget; a chain with its budgets.
        same: task, metric and protocol.
        notes: the value's caveats and the paper's known errors.
    """

    printed: Printed
    method: str
    same: Same
    notes: tuple[str, ...]


def is_model(name: str, printed: str) -> bool:
    """Whether a model of ours (hub id or folder) is what papers call `printed`, by the last part of its name."""
    own = PurePath(name).name.lower()
    hubs = {PurePath(row["hub"]).name.lower() for row in read_rows("models") if row["model"] == printed}
    return own in hubs | {printed.lower()}


@cache
def facts() -> tuple[Fact, ...]:
    """Every printed value that can be measured here, once for each recipe that its method may be."""
    return tuple(_facts())


def _facts() -> Iterator[Fact]:
    methods, tasks = read_rows("methods"), read_rows("tasks")
    for row in read_rows("results"):
        source, table, model, method, budget, metric, value, std, note = row.values()
        printed = Printed(source, table, model, method, budget, metric, float(value), std, note)
        for task in tasks:
            if not holds(task, row, "metric"):
                continue
            n = int(task["n"]) if task["n"] else None
            same = Same(task["task"], task["ours"], float(task["factor"]), task["protocol"], n)
            for entry in methods:
                if holds(entry, row, "method"):
                    said = (note, entry["note"], *_known_errors(row))
                    yield Fact(printed, standard(entry["ours"]), same, tuple(one for one in said if one))


def holds(entry: dict[str, str], row: dict[str, str], name: str) -> bool:
    """Whether an entry of a mapping is about a row: the same paper and name, and the same table where it gives one."""
    return (entry["source"], entry[name]) == (row["source"], row[name]) and entry["table"] in ("", row["table"])


def _known_errors(row: dict[str, str]) -> Iterator[str]:
    for entry in read_rows("notes"):
        if all(value in ("", row[name]) for name, value in entry.items() if name != "note"):
            yield entry["note"]


@cache
def standard(text: str) -> str:
    """A recipe in the spelling that results have: of one method without its budget, of a chain as a whole."""
    if text == VANILLA:
        return text
    parsed = recipe(text, keep=_ANY_KEEP) if lacks_budget(text) else recipe(text)
    return str(parsed) if len(parsed.stages) > 1 else format_method(parsed.stages[0].method)


@cache
def read_rows(name: str) -> tuple[dict[str, str], ...]:
    """The lines of a file of this folder by column."""
    with (_HERE / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return tuple(csv.DictReader(file))
