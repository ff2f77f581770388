"""Tables of what Hi-Lo Prune's fusion and choices do on the embedded models, from benchmarks/results/fusion.json."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from docs_text import change, table

FIGURES = Path(__file__).resolve().parent.parent / "benchmarks" / "results" / "fusion.json"
HEAD = ("model", "what varies", "recipe", "held against")
NOT_MEASURED = "Not measured for these models yet; `python benchmarks/fusion.py` does."


def fusion(path: Path = FIGURES) -> str:
    """Both tables, each with how many of its rows are on either side, if they were measured on today's models."""
    if not path.exists():
        return NOT_MEASURED
    found = json.loads(path.read_text(encoding="utf-8"))
    return "\n\n".join([*_accuracy(found["accuracy"], found["questions"]), *_distance(found["distance"])])


def _accuracy(models: dict[str, Any], questions: int) -> list[str]:
    if not models:
        return ["Accuracy:", NOT_MEASURED]
    whole = ", ".join(f"{of['vanilla']:.1f} on `{name}`" for name, of in models.items())
    rows = [(name, row) for name, of in models.items() for row in of["rows"]]
    cells = [
        [*_named(name, row), f"{row['mean']:.1f}", f"{row['against_mean']:.1f}", change(row["change"])]
        for name, row in rows
    ]
    about = f"Accuracy: the mean over the tasks, {questions} questions of each; unpruned {whole}. {_sides(rows)}"
    return [about, table((*HEAD, "accuracy", "of the other", "change, points"), cells)]


def _distance(models: dict[str, Any]) -> list[str]:
    rows = [(name, row) for name, of in models.items() for row in of]
    cells = [
        [
            *_named(name, row),
            f"{row['mean']:.2f}",
            f"{row['against_mean']:.2f}",
            change(row["change"], " %"),
            _nearer(row),
        ]
        for name, row in rows
    ]
    about = f"Distance of the last logits to the unpruned model's; a fall is nearer. {_sides(rows)}"
    return [about, table((*HEAD, "distance", "of the other", "change", "nearer"), cells)]


def _named(model: str, row: dict[str, Any]) -> list[str]:
    return [f"`{model}`", row["what"], f"`{row['recipe']}`", f"`{row['against']}`"]


def _nearer(row: dict[str, Any]) -> str:
    return f"{row['nearer']} of {row['questions']}"


def _sides(rows: Iterable[tuple[str, dict[str, Any]]]) -> str:
    """How many intervals exclude zero, and on which side."""
    changes: Sequence[Sequence[float]] = [row["change"] for _, row in rows]
    above = sum(low > 0 for _, low, _ in changes)
    below = sum(high < 0 for _, _, high in changes)
    return f"Of {len(changes)} changes, {above} are above and {below} below zero with their whole interval."
