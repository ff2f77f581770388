"""Overlay sheets: an example scene, and what each recipe kept of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from vlmprune.ask.scenes import Example, Reply, picture
from vlmprune.bench.store import VANILLA
from vlmprune.drawing.compare import Comparison, Side
from vlmprune.drawing.run import place_of


def sheet_of(folder: str | Path, example: Example, recipes: Sequence[str]) -> Image.Image:
    """One picture for papers and slides: the scene, then what each of the recipes kept of it, with the replies.

    Recipes without a reply are passed over. After several cuts, what the last one left is shown. Replies that are right
    where the unpruned one is wrong, or the other way round, are marked.
    """
    unpruned = example.replies[VANILLA]
    sides = [Side(VANILLA, None, unpruned.tokens[0], answer=unpruned.text, verdict=_verdict(unpruned))]
    for reply in (example.replies[name] for name in recipes if name in example.replies):
        cut = reply.stages[-1] if reply.stages else None
        sides.append(
            Side(
                reply.recipe,
                None if cut is None else cut.shown,
                reply.tokens[1],
                place_of(cut.layer) if cut is not None and cut.layer else "",
                reply.text,
                _verdict(reply),
                reply.right != unpruned.right,
            )
        )
    scene = Comparison(picture(folder, example), example.window, sides)
    return scene.sheet([f"“{example.question}” {example.answer}"])


def _verdict(reply: Reply) -> str:
    return "right" if reply.right else "wrong"
