"""What the plugin for vLLM can do, for the page on serving."""

from __future__ import annotations

from docs_text import table

import vlmprune
from vlmprune.core.errors import UserError
from vlmprune.core.registry import built_in
from vlmprune.serve.vllm.asked import asked_in, overrides
from vlmprune.serve.vllm.families import TESTED, apart_of
from vlmprune.serve.vllm.launch import has_axes
from vlmprune.testing import FAMILIES


def vllm_methods() -> str:
    """The methods that the plugin runs on each model, by their defaults."""
    rows = []
    for family in TESTED:
        model = FAMILIES[family].build()
        works = [name for name in built_in() if _runs(name, model)]
        rows.append([f"`{family}`", ", ".join(f"`{name}`" for name in works)])
    return table(("model", "methods"), rows)


def _runs(name: str, model: object) -> bool:
    keep = 0.5 if vlmprune.METHODS[name]().budgeted else None
    try:
        asked = asked_in(overrides(name, keep))
        apart_of(model, asked, has_axes(model.config))  # type: ignore[arg-type, attr-defined]
    except UserError:
        return False
    return True
