"""One HTML page that needs nothing but itself: styles, script, plots and pictures are inside it."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from vlmprune.ask.scenes import Cut, Example, Reply, load_examples, picture
from vlmprune.bench.store import VANILLA, Result
from vlmprune.bench.table import Cell, Row, Table
from vlmprune.core.view import Grid
from vlmprune.drawing.patches import draw
from vlmprune.drawing.sheet import shorten
from vlmprune.drawing.shown import Shown
from vlmprune.report import agreement_text
from vlmprune.report import tables as shown
from vlmprune.report.agreement import Agreement
from vlmprune.report.flips import Flips
from vlmprune.report.means import WORDS, equal_means
from vlmprune.report.plots import AXES, MANY, Style, accuracy_figure, inline_svg, lines_of
from vlmprune.report.rank_plot import rank_figure
from vlmprune.report.tables import Block, blocks

if TYPE_CHECKING:
    from jinja2 import Template

FLIPS_SHOWN = 12
_LONGEST_REPLY = 160


@dataclass(frozen=True)
class Card:
    """What one recipe kept of a scene, ready for the page.

    Attributes:
        name: method or recipe.
        reply: what the model said.
        transform: from cells of the grid to pixels of the scene.
        path: an SVG path around every kept cell, in cells.
        place: where the last cut was made, in words.
    """

    name: str
    reply: Reply
    transform: str
    path: str
    place: str


@dataclass(frozen=True)
class Scene:
    """An example with its pictures as data URIs, and its cards by budget."""

    id: str
    example: Example
    vanilla: Reply
    colour: str
    faded: str
    groups: list[tuple[str, list[Card]]]


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
    return _template().render(
        models=models,
        facts=_facts(tables),
        notes=shown.notes(tables),
        style=style,
        show=shown,
        agreement_text=agreement_text,
        means_words=WORDS,
        flips_shown=FLIPS_SHOWN,
        short=partial(shorten, most=_LONGEST_REPLY),
        delta=_delta,
        share=_share,
    )


@cache
def _template() -> Template:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("page.html.j2")


def _model(folder: Path, number: int, table: Table, found: Sequence[Flips], style: dict[str, Style]) -> dict[str, Any]:
    parts = blocks(table)
    names = list(dict.fromkeys(row.method for block in parts for row in block.rows))
    overview = [(name, [[row for row in block.rows if row.method == name] for block in parts]) for name in names]
    return {
        "id": f"m{number + 1}",
        "name": table.model,
        "table": table,
        "blocks": parts,
        "overview": overview,
        "means": equal_means(table),
        "intervals": len(lines_of([table])) <= MANY,
        "plots": [
            (axis, words, inline_svg(accuracy_figure(table, axis, style), f"m{number + 1}-{axis}"))
            for axis, words in AXES.items()
        ],
        "scenes": _scenes(folder, number, table, parts),
        "flips": _flips(found, parts),
        "ranks": _ranks(table, f"m{number + 1}", style),
        "about": _about(table),
    }


def _agreement(table: Table, found: Sequence[Agreement]) -> dict[str, Any] | None:
    if not found:
        return None
    return {"lines": agreement_text.lines(found), "said": agreement_text.sentences(table, found)}


def _ranks(table: Table, name: str, style: dict[str, Style]) -> dict[str, Any] | None:
    """The rankings by budget and their plot; nothing where no budget has two methods."""
    found = shown.rankings(table)
    if not found:
        return None
    return {"plot": inline_svg(rank_figure(table, style), f"{name}-ranks"), "tables": found}


def _flips(changed: Sequence[Flips], parts: Sequence[Block]) -> list[tuple[Block, list[tuple[str, Flips]]]]:
    """The changed answers by budget, each with the name of its row."""
    found = {id(item.row): item for item in changed}
    grouped = [
        (block, [(shown.row_name(block, row), found[id(row)]) for row in block.rows if id(row) in found])
        for block in parts
    ]
    return [(block, rows) for block, rows in grouped if rows]


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


# ---------------------------------------------------------------- examples


def _scenes(folder: Path, number: int, table: Table, parts: Sequence[Block]) -> list[Scene]:
    scenes = []
    for index, example in enumerate(examples_of(folder, table)):
        image = picture(folder, example)
        nothing = draw(image, Shown(Grid(1, 1), torch.empty(0, dtype=torch.long)), window=example.window)
        groups = [(block.title, _cards(example, block)) for block in parts]
        scenes.append(
            Scene(
                id=f"m{number + 1}-s{index + 1}",
                example=example,
                vanilla=example.replies[VANILLA],
                colour=_data_uri(image),
                faded=_data_uri(nothing.convert("L")),
                groups=[(title, cards) for title, cards in groups if cards],
            )
        )
    return scenes


def examples_of(folder: Path, table: Table) -> list[Example]:
    """The examples made with the weights that the table's runs had."""
    weights = {cell.result.weights for row in table.rows for cell in row.cells.values()}
    return load_examples(folder, table.model, weights)


def _cards(example: Example, block: Block) -> list[Card]:
    rows = [row for row in block.rows if not row.is_vanilla and row.recipe in example.replies and _own_positions(row)]
    return [_card(example, shown.row_name(block, row), example.replies[row.recipe]) for row in rows]


def _own_positions(row: Row) -> bool:
    """Whether it was run under the method's own position policy, as examples are."""
    return all(cell.result.positions is None for cell in row.cells.values())


def _card(example: Example, name: str, reply: Reply) -> Card:
    cut = reply.stages[-1] if reply.stages else Cut(0, 1, 1, (0,), whole=True)
    window = example.window
    across, down = (window.right - window.left) / cut.cols, (window.bottom - window.top) / cut.rows
    transform = f"translate({window.left:.6g} {window.top:.6g}) scale({across:.6g} {down:.6g})"
    path = "".join(f"M{cell % cut.cols} {cell // cut.cols}h1v1h-1z" for cell in cut.kept)
    if not reply.stages:
        place = "nothing dropped"
    elif cut.whole and len(cut.kept) == cut.rows * cut.cols:
        place = f"resized to {cut.rows} × {cut.cols} tokens"
    else:
        place = f"before layer {cut.layer}" if cut.layer else "before the LLM"
    return Card(name, reply, transform, path, place)


def _data_uri(image: Image.Image) -> str:
    out = io.BytesIO()
    image.save(out, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()
