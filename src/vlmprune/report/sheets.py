"""Overlay sheets: an example scene, and what each recipe kept of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from vlmprune.ask.overlay import Window, draw
from vlmprune.ask.scenes import Cut, Example, Reply, picture
from vlmprune.ask.sheet import Panel, fit, sheet, shorten
from vlmprune.bench.store import VANILLA
from vlmprune.core.view import Grid


def sheet_of(folder: str | Path, example: Example, recipes: Sequence[str]) -> Image.Image:
    """One picture for papers and slides: the scene, then what each of the recipes kept of it, with the replies.

    Recipes without a reply are passed over. After several cuts, what the last one left is shown.
    """
    scene = picture(folder, example)
    drawn = fit(scene, low=224)
    window = example.window.scaled(drawn.width / scene.width, drawn.height / scene.height)
    unpruned = example.replies[VANILLA]
    panels = [Panel(drawn, f"vanilla: {unpruned.tokens[0]} tokens\n{verdict(unpruned)}")]
    for reply in (example.replies[name] for name in recipes if name in example.replies):
        image = draw_cut(drawn, reply.stages[-1], window) if reply.stages else drawn
        panels.append(Panel(image, f"{reply.recipe}: {reply.tokens[1]} tokens\n{verdict(reply)}"))
    columns = min(6, max(3, round(math.sqrt(len(panels)))))
    return sheet(panels, columns, [f"“{example.question}” {example.answer}"])


def draw_cut(image: Image.Image, cut: Cut, window: Window) -> Image.Image:
    """What a cut left, drawn over the picture; `window` in pixels of `image`."""
    return draw(image, Grid(cut.rows, cut.cols), torch.tensor(cut.kept), window=window, cells=cut.whole)


def verdict(reply: Reply) -> str:
    """The reply in quotes and whether it is right, in words."""
    return f"“{shorten(reply.text, 120)}” {'right' if reply.right else 'wrong'}"
