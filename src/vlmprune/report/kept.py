"""Example scenes as the page draws them: what each recipe kept, at every budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from vlmprune.ask.scenes import Cut, Example, Reply, load_examples, picture
from vlmprune.bench.store import VANILLA
from vlmprune.bench.table import Row, Table
from vlmprune.core.view import Grid
from vlmprune.drawing.html import data_url
from vlmprune.drawing.patches import draw
from vlmprune.drawing.shown import Shown
from vlmprune.report.tables import Block, row_name


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

    @property
    def fullest(self) -> int:
        """Number of the group with the most cards, the smallest budget of those, from 1."""
        sizes = [len(cards) for _, cards in self.groups]
        return max(range(len(sizes)), key=lambda k: (sizes[k], k)) + 1


def scenes(folder: Path, model: str, table: Table, parts: Sequence[Block]) -> list[Scene]:
    """A model's examples; ids in the page begin with `model`."""
    found = []
    for index, example in enumerate(examples_of(folder, table)):
        image = picture(folder, example)
        nothing = draw(image, Shown(Grid(1, 1), torch.empty(0, dtype=torch.long)), window=example.window)
        groups = [(block.title, _cards(example, block)) for block in parts]
        found.append(
            Scene(
                id=f"{model}-s{index + 1}",
                example=example,
                vanilla=example.replies[VANILLA],
                colour=data_url(image),
                faded=data_url(nothing.convert("L")),
                groups=[(title, cards) for title, cards in groups if cards],
            )
        )
    return found


def examples_of(folder: Path, table: Table) -> list[Example]:
    """The examples made with the weights that the table's runs had."""
    weights = {cell.result.weights for row in table.rows for cell in row.cells.values()}
    return load_examples(folder, table.model, weights)


def _cards(example: Example, block: Block) -> list[Card]:
    rows = [row for row in block.rows if not row.is_vanilla and row.recipe in example.replies and _own_positions(row)]
    return [_card(example, row_name(block, row), example.replies[row.recipe]) for row in rows]


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


def change(reply: Reply, vanilla: Reply) -> str:
    """What filters ask: "right" or "wrong", and after a flip "flipped" with "broken" or "repaired"."""
    said = "right" if reply.right else "wrong"
    if reply.right == vanilla.right:
        return said
    return f"{said} flipped {'repaired' if reply.right else 'broken'}"
