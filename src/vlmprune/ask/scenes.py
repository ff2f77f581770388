"""Example scenes as they are stored beside the results; reading them needs no model.

DIR/examples/MODEL.json     the scenes, their questions, and for each recipe the kept slots and the reply
DIR/examples/MODEL-1.png    the scenes' pictures
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from vlmprune.bench.store import bench_into
from vlmprune.core.errors import UserError
from vlmprune.core.view import Grid
from vlmprune.drawing.shown import NONE, Shown
from vlmprune.drawing.window import Window

SCHEMA = 1


@dataclass(frozen=True)
class Cut:
    """What was left after one cut.

    Attributes:
        layer: decoder layer before which it was made, 0 for a cut before the language model.
        rows, cols: of the grid that `kept` counts on.
        kept: its cells, ascending. Merged tokens count where they stand.
        whole: whether the image was resized to this grid, so that a cell is one patch of the smaller image.
        pixels: then, pixels across a cell of what the model saw; 0 in files that do not say it.
        token, own: as in `drawing.shown.Shown`; empty where nothing was merged.
        parts: the kept cells by the name of their kind.
        gathered: cells that the others were made to attend to before they were dropped.
    """

    layer: int
    rows: int
    cols: int
    kept: tuple[int, ...]
    whole: bool = False
    pixels: int = 0
    token: tuple[int, ...] = ()
    own: tuple[int, ...] = ()
    parts: Mapping[str, Sequence[int]] = field(default_factory=dict)
    gathered: tuple[int, ...] = ()

    @classmethod
    def of(cls, layer: int, shown: Shown) -> Cut:
        """What is shown after a cut before decoder layer `layer`."""
        return cls(
            layer,
            shown.grid.rows,
            shown.grid.cols,
            tuple(shown.kept.tolist()),
            whole=shown.resized,
            pixels=shown.pixels,
            token=() if shown.token is None else tuple(shown.token.tolist()),
            own=() if shown.own is None else tuple(shown.own.tolist()),
            parts={name: cells.tolist() for name, cells in shown.parts.items()},
            gathered=tuple(shown.gathered.tolist()),
        )

    @property
    def shown(self) -> Shown:
        """It as it is drawn."""
        token, own = (torch.tensor(values) if values else None for values in (self.token, self.own))
        parts = {name: torch.tensor(cells, dtype=torch.long) for name, cells in self.parts.items()}
        gathered = torch.tensor(self.gathered) if self.gathered else NONE
        kept = torch.tensor(self.kept, dtype=torch.long)
        return Shown(Grid(self.rows, self.cols), kept, token, own, parts, gathered, self.pixels, self.whole)


@dataclass(frozen=True)
class Reply:
    """What the model said about a scene under one recipe.

    Attributes:
        recipe: "hiprune:0.222"; "vanilla" for the unpruned model.
        text: the reply.
        right: whether it is the answer.
        tokens: visual tokens before and after pruning.
        entering: visual tokens entering a layer, mean.
        stages: the cuts, in order.
    """

    recipe: str
    text: str
    right: bool
    tokens: tuple[int, int]
    entering: float
    stages: tuple[Cut, ...] = ()


@dataclass(frozen=True)
class Example:
    """A scene and a question.

    Attributes:
        picture: file name in the folder of examples.
        size: (width, height) of the picture.
        window: the part of it that the model saw.
        question, kind, options, answer: of the question.
        replies: by recipe.
    """

    picture: str
    size: tuple[int, int]
    window: Window
    question: str
    kind: str
    options: tuple[str, ...]
    answer: str
    replies: Mapping[str, Reply]


def slug(name: str) -> str:
    """A model's name as part of a file name."""
    return re.sub(r"[^\w.-]+", "_", name).strip("_.")[-80:] or "model"


def load_examples(folder: str | Path, model_name: str, weights: Collection[str] = ()) -> list[Example]:
    """The examples of a model; none where they have not been made.

    Args:
        folder: the result folder.
        model_name: as in `store.Run.model`.
        weights: of the results beside which they are shown; examples of other weights are left out.

    Raises:
        UserError: the file is broken.
    """
    path = Path(folder) / "examples" / f"{slug(model_name)}.json"
    if not path.exists():
        return []
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["schema"] != SCHEMA or (weights and content["weights"] and content["weights"] not in weights):
            return []
        return [_example(scene) for scene in content["scenes"]]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{str(path)!r} is broken: delete it, and {bench_into(folder)} makes it again.") from None


def _example(scene: dict[str, Any]) -> Example:
    replies = {name: _reply(values) for name, values in scene["replies"].items()}
    return Example(
        picture=scene["picture"],
        size=tuple(scene["size"]),
        window=Window(*scene["window"]),
        question=scene["question"],
        kind=scene["kind"],
        options=tuple(scene["options"]),
        answer=scene["answer"],
        replies=replies,
    )


def _reply(values: dict[str, Any]) -> Reply:
    lists = ("kept", "token", "own", "gathered")
    stages = tuple(
        Cut(**{**stage, **{name: tuple(stage[name]) for name in lists if name in stage}}) for stage in values["stages"]
    )
    return replace(Reply(**{**values, "stages": ()}), stages=stages, tokens=tuple(values["tokens"]))


def picture(folder: str | Path, example: Example) -> Image.Image:
    """The scene of an example.

    Raises:
        UserError: the picture is missing or broken.
    """
    path = Path(folder) / "examples" / example.picture
    try:
        with Image.open(path) as opened:
            return opened.convert("RGB")
    except OSError:
        raise UserError(
            f"The example picture {str(path)!r} cannot be read: delete the folder {str(path.parent)!r}, and "
            f"{bench_into(folder)} makes it again."
        ) from None
