"""Tables of docs/speed.md that come from the figures in benchmarks/results."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from docs_text import table

from vlmprune.bench.random_models import Architecture

RESULTS = Path(__file__).resolve().parent.parent / "benchmarks" / "results"
SELECTORS = ("selectors", "gpu-selecting")


def selectors() -> str:
    """Selections beside the plain algorithms of their authors, Hi-Lo's beside DivPrune's, and those of batches."""
    return _each(SELECTORS, "selecting", _selectors)


def prefill() -> str:
    """Pruned prefills over the bare text model's."""
    return _each(("prefill", "gpu-prefill", "gpu-prefill-6400"), "prefill", _prefill)


def prefill_wide() -> str:
    """What a method adds to the prefill of two layers of a large model's width, and what that is of all its layers."""
    return _each(("prefill-wide",), "prefill", _wide)


def scoring() -> str:
    """What statistics cost beside the eager way."""
    return _each(("scoring", "gpu-scoring"), "scoring", _scoring)


def decoding() -> str:
    """Steps inside a block over the same steps outside."""
    return _each(("decoding", "gpu-decoding"), "decoding", _decoding)


def scaling() -> str:
    """Pruned over unpruned prefills by size."""
    return _each(("scaling", "gpu-scaling"), "scaling", _scaling)


def memory() -> str:
    """Peak memory, and keys and values."""
    return _each(("memory", "gpu-memory"), "memory", _memory)


def _each(names: Sequence[str], script: str, made: Callable[[dict[str, Any]], str]) -> str:
    """The tables of every file that is there."""
    paths = [path for name in names if (path := RESULTS / f"{name}.json").exists()]
    if not paths:
        return f"Not measured for this version yet; `python benchmarks/{script}.py` makes the table."
    return "\n\n".join(made(json.loads(path.read_text(encoding="utf-8"))) for path in paths)


def _about(found: dict[str, Any]) -> str:
    """Where and how a file was measured."""
    machine, settings = found["machine"], found["settings"]
    repeats = f", {settings['repeats']} turns" if "repeats" in settings else ""
    noises = [row["noise"] for row in found["rows"] if "noise" in row]
    noise = f"; noise {min(noises):.2f} to {max(noises):.2f}" if noises else ""
    threads = "" if machine["device"].startswith("cuda") else f", threads {machine['threads']}"
    model = settings.get("random") or settings["model"]
    return (
        f"`{model}` on {machine['device']}{threads}{repeats}{noise}. torch {machine['torch']}, "
        f"transformers {machine['transformers']}, commit {str(machine['commit'])[:12]}."
    )


def _prefill(found: dict[str, Any]) -> str:
    rows = {(row["method"], row["keep"]): row for row in found["rows"]}
    methods = list(dict.fromkeys(method for method, keep in rows if keep < 1))
    keeps = sorted({keep for _, keep in rows if keep < 1}, reverse=True)
    whole = next(row for row in found["rows"] if row["keep"] == 1)
    lines = [
        [f"`{method}`", f"{next(row['target'] for (m, _), row in rows.items() if m == method):g}",
         *(_over(rows.get((method, keep))) for keep in keeps)]
        for method in methods
    ]  # fmt: skip
    missed = [row for row in found["rows"] if "target" in row and row["ratio"] > row["target"]]
    say = f"{len(missed)} of {len(found['rows']) - 1} ratios are above their target, in bold."
    unpruned = (
        f"The unpruned forward takes {whole['forward_ms']:.0f} ms, {whole['ratio']:.2f} of the bare text model's."
    )
    head = ["method", "target", *(f"{100 * keep:g} %" for keep in keeps)]
    return f"{table(head, lines)}\n\n{say} {unpruned} {_about(found)}"


def _wide(found: dict[str, Any]) -> str:
    some = Architecture.parse(found["settings"]["model"])
    every, few = (one.config().text_config.num_hidden_layers for one in (replace(some, layers=None), some))
    times = every / few
    rows = [row for row in found["rows"] if row["keep"] < 1]
    lines = [
        [f"`{row['method']}`", f"{row['bare_ms']:.0f}", f"{row['forward_ms'] - row['bare_ms']:.0f}",
         f"{1 + (row['ratio'] - 1) / times:.3f}"]
        for row in rows
    ]  # fmt: skip
    over = sum(1 + (row["ratio"] - 1) / times > row["target"] for row in rows)
    head = ["method", "bare, ms", "added, ms", "over all layers"]
    say = f"{over} of {len(rows)} are above their target. {100 * rows[0]['keep']:g} % are kept."
    return f"{table(head, lines)}\n\n{say} {_about(found)}"


def _over(row: dict[str, Any] | None) -> str:
    if row is None:
        return "–"
    ratio = f"{row['ratio']:.2f}"
    return f"{f'**{ratio}**' if row['ratio'] > row['target'] else ratio} ({row['unpruned']:.1f}x)"


def _scoring(found: dict[str, Any]) -> str:
    lines = [
        [row["what"], row["of"], f"{row['plain_ms']:.1f}", f"{row['score_ms']:.2f}", f"{100 * row['share']:.2f} %",
         f"< {100 * row['target']:g} %", f"{100 * row['eager_share']:.0f} %",
         *(f"{row[name]:.1f}" for name in ("plain_peak_mb", "score_peak_mb", "eager_peak_mb"))]
        for row in found["rows"]
    ]  # fmt: skip
    head = ["read", "of", "ms", "reading, ms", "share", "target", "eager, share", "MB", "reading, MB", "eager, MB"]
    return f"{table(head, lines)}\n\n{_about(found)}"


def _decoding(found: dict[str, Any]) -> str:
    lines = [
        [f"`{row['method']}`", _stored(row["stored"]), f"{row['plain_ms']:.2f}", f"{row['inside_ms']:.2f}",
         f"{row['ratio']:.3f}", f"{row['noise']:.3f}", f"{row['unpruned']:.2f}"]
        for row in found["rows"]
    ]  # fmt: skip
    head = ["method", "stored", "outside, ms", "inside, ms", "ratio", "noise", "unpruned"]
    missed = sum(row["ratio"] > row["target"] for row in found["rows"])
    target = found["rows"][0]["target"]
    return f"{table(head, lines)}\n\n{missed} of {len(lines)} ratios are above {target:g}. {_about(found)}"


def _stored(lengths: list[int]) -> str:
    """Tokens stored at each decoder layer, as runs."""
    runs = [f"{length} x {len(list(same))}" for length, same in itertools.groupby(lengths)]
    return ", ".join(runs) if len(runs) < 5 else f"{lengths[0]} to {lengths[-1]}"


def _scaling(found: dict[str, Any]) -> str:
    rows = {(row["method"], row["visual"], row["batch"]): row for row in found["rows"]}
    methods = list(dict.fromkeys(method for method, _, _ in rows))
    sizes = list(dict.fromkeys((visual, batch) for _, visual, batch in rows))
    lines = [
        [f"`{method}`", *(f"{row['ratio']:.2f} ({row['limit']:.2f})"
         if (row := rows.get((method, *size))) else "–" for size in sizes)]
        for method in methods
    ]  # fmt: skip
    head = ["method", *(f"{visual} tokens, batch {batch}" for visual, batch in sizes)]
    return f"{table(head, lines)}\n\n{100 * found['settings']['keep']:g} % are kept. {_about(found)}"


def _memory(found: dict[str, Any]) -> str:
    lines = [
        [f"`{row['method']}`", f"{100 * row['keep']:g} %", f"{row['peak_mb']:.1f}", f"{row['peak']:.2f}",
         f"{row['kv_mb']:.2f}", f"{row['kv']:.2f}"]
        for row in found["rows"]
    ]  # fmt: skip
    head = ["method", "kept", "peak, MB", "of unpruned", "keys and values, MB", "of unpruned"]
    return f"{table(head, lines)}\n\n{_about(found)}"


def _selectors(found: dict[str, Any]) -> str:
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
    together = table(
        ["selection", "features", "images", "one by one, ms", "together, ms", "times as fast", "same images", "noise"],
        [
            [*_what(line, line["method"])[:2], f"{line['images']} of {_what(line, '')[2]}",
             *_times(line, "alone_ms", "together_ms"), f"{line['ratio']:.2f}",
             f"{line['same']} of {line['images']}", f"{line['noise']:.2f}"]
            for line in found["together"]
        ],
    )  # fmt: skip
    tables = [plain, hilo, together]
    if found.get("loops"):
        tables.append(
            table(
                ["loop", "images", "in steps, ms", "as it runs, ms", "by", "times as fast", "same images", "noise"],
                [
                    [line["loop"], f"{line['images']} of {line['tokens']} > {line['kept']}", f"{line['steps_ms']:.2f}",
                     f"{line['whole_ms']:.2f}", line["way"], f"{line['ratio']:.2f}",
                     f"{line['same']} of {line['images']}", f"{line['noise']:.2f}"]
                    for line in found["loops"]
                ],
            )
        )  # fmt: skip
    device = "One thread" if found.get("device", "cpu") == "cpu" else "A GPU"
    made = f"{device}, least time of at most {found['repeats']} runs in turns, torch {found['torch']}."
    return "\n\n".join([*tables, made])


def _what(line: dict[str, Any], method: str) -> list[str]:
    return [f"`{method}`", line["features"], f"{line['tokens']} > {line['kept']}, {line['width']} wide"]


def _times(line: dict[str, Any], *names: str) -> list[str]:
    return [f"{line[name]:.1f}" for name in names]
