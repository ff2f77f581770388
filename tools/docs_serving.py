"""What the plugin for vLLM can do, and how fast it is, for the page on serving."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from docs_text import table

import vlmprune
from vlmprune.core.errors import UserError
from vlmprune.core.registry import built_in
from vlmprune.serve.vllm.asked import asked_in, overrides
from vlmprune.serve.vllm.families import TESTED, apart_of
from vlmprune.serve.vllm.launch import has_axes
from vlmprune.testing import FAMILIES

FIGURES = Path(__file__).resolve().parent.parent / "benchmarks" / "results" / "serving.json"


def vllm_methods() -> str:
    """The methods that the plugin runs on each model, by their defaults, and those that need to be told positions."""
    rows = []
    for family in TESTED:
        model = FAMILIES[family].build()
        works = [name for name in built_in() if _runs(name, model)]
        told = [name for name in built_in() if name not in works and _runs(name, model, "compact")]
        rows.append([f"`{family}`", *(", ".join(f"`{name}`" for name in names) or "-" for names in (works, told))])
    return table(("model", "methods", "with `--positions compact`"), rows)


def _runs(name: str, model: object, positions: str | None = None) -> bool:
    keep = 0.5 if vlmprune.METHODS[name]().budgeted else None
    try:
        asked = asked_in(overrides(name, keep, positions=positions))
        apart_of(model, asked, has_axes(model.config))  # type: ignore[arg-type, attr-defined]
    except UserError:
        return False
    return True


def vllm_speed(figures: Path = FIGURES) -> str:
    """Servers side by side, by benchmarks/serving.py."""
    if not figures.exists():
        return "Not measured for this version yet; `python benchmarks/serving.py` makes the table."
    found = json.loads(figures.read_text(encoding="utf-8"))
    rows = found["rows"]
    parts = [_speeds(model, [row for row in rows if row["model"] == model]) for model in found["settings"]["model"]]
    return "\n\n".join([*parts, _measured(found)])


def _speeds(model: str, rows: list[dict[str, Any]]) -> str:
    head = (
        f"`{model}`, served by", "at once", "requests/s", "of the first", "TTFT, ms", "of the first", "prompt",
        "of the first",
    )  # fmt: skip
    lines = [
        (
            row["server"] if " " in row["server"] else f"`{row['server']}`", f"{row['at_once']}",
            f"{row['requests_s']:.2f}", f"{row['times_requests']:.2f}", f"{row['ttft_ms']:.0f}",
            f"{row['times_ttft']:.2f}", f"{row['prompt']:.0f}", f"{row['times_tokens']:.2f}",
        )
        for row in rows
    ]  # fmt: skip
    return table(head, lines)


def _measured(found: dict[str, Any]) -> str:
    machine, settings = found["machine"], found["settings"]
    noises = [row["noise"] for row in found["rows"]]
    return (
        f"{settings['layers']} layers, {settings['width']} wide, {settings['new_tokens']} new tokens. "
        f"On {machine['device']}; the best of {settings['repeats']} turns; noise "
        f"{min(noises):.2f} to {max(noises):.2f}. vLLM {machine['vllm']}, transformers {machine['transformers']}, "
        f"torch {machine['torch']}, commit {str(machine['commit'])[:12]}."
    )
