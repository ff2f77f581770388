"""One HTML page that needs nothing but itself: styles, script, plots and pictures are inside it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from vlmprune.bench.store import Result
from vlmprune.bench.table import Cell, Row, Table
from vlmprune.drawing.html import template
from vlmprune.drawing.sheet import shorten
from vlmprune.report import agreement_text, glance
from vlmprune.report import tables as shown
from vlmprune.report.agreement import Agreement
from vlmprune.report.browse import questions_of
from vlmprune.report.flips import Flip, Flips
from vlmprune.report.kept import change, scenes
from vlmprune.report.marks import mark
from vlmprune.report.plots import AXES, MANY, Style, accuracy_figure, inline_svg, lines_of
from vlmprune.report.rank_plot import rank_figure
from vlmprune.report.scatter import ENTERING, OPERATIONS, points_of, scatter
from vlmprune.report.tables import Block, blocks
from vlmprune.report.thumbs import thumbs
from vlmprune.report.verdict import WORDS as VERDICT_WORDS
from vlmprune.report.verdict import Means, means_of, sentences

_PAGE = Path(__file__).parent / "page.html.j2"
FLIPS_SHOWN = 12
_LONGEST_REPLY = 160
_SIZES = {"broad": (760.0, 450.0), "narrow": (360.0, 400.0)}  # pixels of the first plot: on a screen, on a phone


def render(
    folder: Path,
    compared: Sequence[tuple[Table, Sequence[Flips]]],
    style: dict[str, Style],
    agreed: Mapping[str, Sequence[Agreement]],
) -> str:
    """The page as HTML.

    Args:
        folder: the result folder, for its examples.
        compared: the tables of its models, each with the answers that pruning changed.
        style: how each method is drawn.
        agreed: by model, its agreement with published tables.
    """
    models = [
        _model(folder, number, table, found, style) | {"agreement": _agreement(table, agreed[table.model])}
        for number, (table, found) in enumerate(compared)
    ]
    tables = [table for table, _ in compared]
    return template(_PAGE).render(
        models=models,
        facts=_facts(tables),
        notes=shown.facts(tables),
        style=style,
        mark=mark,
        glances=glance,
        verdict_words=VERDICT_WORDS,
        sentences=sentences,
        show=shown,
        agreement_text=agreement_text,
        flips_shown=FLIPS_SHOWN,
        short=partial(shorten, most=_LONGEST_REPLY),
        delta=_delta,
        change=change,
        id_of=id,
        share=_share,
    )


def _model(folder: Path, number: int, table: Table, found: Sequence[Flips], style: dict[str, Style]) -> dict[str, Any]:
    parts = blocks(table)
    means = means_of(table)
    small = thumbs(table, _shown(found), f"m{number + 1}")
    pictured = scenes(folder, f"m{number + 1}", table, parts)
    return {
        "id": f"m{number + 1}",
        "name": table.model,
        "table": table,
        "blocks": parts,
        "mean": means.of,
        "first": _first(table, means, style),
        "overviews": glance.overviews(table, parts),
        "own": glance.own_budgets(table),
        "lines": [(list(style).index(line), line) for line in lines_of([table])],
        "intervals": len(lines_of([table])) <= MANY,
        "plots": [
            (words, [_plot(table, axis, style, task, f"m{number + 1}-{axis}") for task in table.tasks])
            for axis, words in AXES.items()
        ],
        "shown": list(dict.fromkeys(card.name for scene in pictured for _, cards in scene.groups for card in cards)),
        "scenes": pictured,
        "flips": _flips(found, parts),
        "thumbs": small,
        "questions": questions_of(table, parts, small),
        "ranks": _ranks(table, f"m{number + 1}", style),
        "about": _about(table),
    }


def _first(table: Table, means: Means, style: dict[str, Style]) -> dict[str, Any] | None:
    """The first screen's plots, broad and narrow, by what is across, and its verdicts; nothing without means."""
    if not means.of:
        return None
    named = (("tokens", ENTERING), ("operations", OPERATIONS))
    found = [(name, axis, points) for name, axis in named if (points := points_of(table, means.of, axis))]
    plots = [
        (name, [(kind, scatter(points, axis, style, size)) for kind, size in _SIZES.items()])
        for name, axis, points in found
    ]
    return {"plots": plots, "verdicts": means.verdicts}


def _agreement(table: Table, found: Sequence[Agreement]) -> dict[str, Any] | None:
    if not found:
        return None
    return {"lines": agreement_text.lines(found), "said": agreement_text.sentences(table, found)}


def _plot(table: Table, axis: str, style: dict[str, Style], task: str, name: str) -> str:
    """The plot of one task: a figure of its own, so that a narrow screen shows one below another."""
    return inline_svg(
        accuracy_figure(table, axis, style, legend=False, tasks=(task,)), f"{name}-{table.tasks.index(task)}"
    )


def _ranks(table: Table, name: str, style: dict[str, Style]) -> dict[str, Any] | None:
    """The rankings by budget and their plot; nothing where no budget has two methods."""
    found = shown.rankings(table)
    if not found:
        return None
    plots = [inline_svg(rank_figure(table, style, [one]), f"{name}-ranks{k + 1}") for k, one in enumerate(found)]
    return {"plots": plots, "tables": found}


def _flips(changed: Sequence[Flips], parts: Sequence[Block]) -> list[tuple[Block, list[tuple[str, Flips]]]]:
    """The changed answers by budget, each with the name of its row."""
    found = {id(item.row): item for item in changed}
    grouped = [
        (block, [(shown.row_name(block, row), found[id(row)]) for row in block.rows if id(row) in found])
        for block in parts
    ]
    return [(block, rows) for block, rows in grouped if rows]


def _shown(changed: Sequence[Flips]) -> list[Flip]:
    """Those that the page lists."""
    return [flip for item in changed for part in (item.broken, item.repaired) for flip in part[:FLIPS_SHOWN]]


# ---------------------------------------------------------------- figures in words


def _facts(tables: Sequence[Table]) -> list[tuple[str, str]]:
    """What the comparison holds."""
    methods = list(dict.fromkeys(row.method for table in tables for row in table.rows if not row.is_vanilla))
    keeps = list(dict.fromkeys(block.title for table in tables for block in blocks(table) if block.rows[1:]))
    tasks = list(dict.fromkeys(task for table in tables for task in table.tasks))
    questions = max(sum(cell.n for cell in row.cells.values()) for table in tables for row in table.rows if row.cells)
    return [
        (str(len(tables)), "model" if len(tables) == 1 else "models"),
        (str(len(methods)), "method" if len(methods) == 1 else "methods"),
        (str(len(keeps)), "budget" if len(keeps) == 1 else "budgets"),
        (str(len(tasks)), "task" if len(tasks) == 1 else "tasks"),
        (str(questions), "questions per model"),
    ]


def _about(table: Table) -> list[tuple[str, str]]:
    """The conditions that a model's runs were made under; several where they differ."""
    results = [result for row in table.rows for cell in row.cells.values() for result in cell.results]

    def several(values: list[str]) -> str:
        return ", ".join(dict.fromkeys(value for value in values if value))

    def versions(result: Result) -> str:
        return ", ".join(f"{name} {version}" for name, version in sorted(result.versions.items()))

    def of_machine(name: str) -> list[str]:
        return [str(result.made.get(name) or "") for result in results]

    rows = [
        ("weights", several([result.weights for result in results])),
        ("numbers", several([f"{result.dtype}, {result.attention} attention" for result in results])),
        ("wording", several([result.protocol for result in results])),
        ("decoding", several([_decoding(result) for result in results])),
        ("seed", several([str(result.seed) for result in results if result.seed is not None])),
        ("libraries", several([versions(result) for result in results])),
        ("device", several(of_machine("device"))),
        ("git commit", several(of_machine("commit"))),
    ]
    return [(name, value) for name, value in rows if value]


def _decoding(result: Result) -> str:
    drawn = "sampling" if result.generation.get("do_sample") else "greedy"
    return f"{drawn}, up to {result.generation.get('max_new_tokens', '?')} tokens"


def _delta(cell: Cell) -> str:
    """Whether the paired difference is a loss, a gain, or within its interval of none: a CSS class."""
    if cell.diff is None or cell.diff.low <= 0 <= cell.diff.high:
        return "same"
    return "loss" if cell.diff.value < 0 else "gain"


def _share(row: Row) -> str:
    """The length of an overview bar, percent of the cell."""
    share = row.rel_mean
    return "0.0" if share is None or math.isnan(share) else f"{min(100.0, share):.1f}"
