"""Tables of docs/speed.md that come from the figures in benchmarks/results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from docs_text import table

RESULTS = Path(__file__).resolve().parent.parent / "benchmarks" / "results"


def selectors() -> str:
    """Selections beside the plain algorithms of their authors, and Hi-Lo's beside DivPrune's."""
    path = RESULTS / "selectors.json"
    if not path.exists():
        return "Not measured for this version yet; `python benchmarks/selecting.py` makes the table."
    found = json.loads(path.read_text(encoding="utf-8"))
    plain = table(
        ["selection", "features", "tokens", "plain ms", "ours ms", "times as fast", "target", "same tokens", "noise"],
        [
            [*_what(line, line["method"]), *_times(line, "plain_ms", "ours_ms"), f"{line['ratio']:.2f}",
             f">= {line['target']:g}", f"{line['same']} of {line['kept']}", f"{line['noise']:.2f}"]
            for line in found["selections"]
        ],
    )  # fmt: skip
    hilo = table(
        ["selection", "features", "tokens", "DivPrune ms", "ours ms", "times DivPrune's", "limit", "noise"],
        [
            [*_what(line, "hilo"), *_times(line, "divprune_ms", "hilo_ms"), f"{line['ratio']:.2f}",
             f"<= {line['limit']:g}", f"{line['noise']:.2f}"]
            for line in found["hilo"]
        ],
    )  # fmt: skip
    made = f"One thread, least processor time of at most {found['repeats']} runs in turns, torch {found['torch']}."
    return f"{plain}\n\n{hilo}\n\n{made}"


def _what(line: dict[str, Any], method: str) -> list[str]:
    return [f"`{method}`", line["features"], f"{line['tokens']} > {line['kept']}, {line['width']} wide"]


def _times(line: dict[str, Any], *names: str) -> list[str]:
    return [f"{line[name]:.1f}" for name in names]
