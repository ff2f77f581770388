"""Example scenes: what each method kept of them, and what the model then said.

They are made once, while a model is at hand, and kept beside the results, so that a report needs no model:

    DIR/examples/MODEL.json     the scenes, their questions, and for each recipe the kept slots and the reply
    DIR/examples/MODEL-1.png    the scenes' pictures
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

import vlmprune
from vlmprune.bench.marks import recorded
from vlmprune.bench.protocol import protocol_for
from vlmprune.bench.score import judge
from vlmprune.bench.store import VANILLA, bench_into, write_json
from vlmprune.bench.tasks import TASKS, Canvas, Sample, canvas_for
from vlmprune.core.errors import UserError
from vlmprune.core.outputs import check_folder, make_folder
from vlmprune.core.recipe import Recipe
from vlmprune.core.report import RunReport
from vlmprune.core.view import Grid
from vlmprune.report.overlay import Panel, Window, coarsen, draw, fit, seen_window, sheet
from vlmprune.report.run import generate, resizes, shorten

if TYPE_CHECKING:
    from vlmprune import TextTower

SCHEMA = 1
SEED = 20_261_121  # of the example scenes; neither training nor the benchmark draws from it
_ASKED = (("synth-ocr", "ocr"), ("synth-math", "count"), ("synth-instruct", "color"))
_TRIES = 400  # questions looked through for a scene worth showing


@dataclass(frozen=True)
class Stage:
    """What was left after one cut.

    Attributes:
        layer: decoder layer before which it was made, 0 for a cut before the language model.
        rows, cols: of the grid that `kept` counts on.
        kept: its cells, ascending. Merged tokens count where they stand.
        whole: whether the image was resized to this grid, so that a cell is one patch of the smaller image.
    """

    layer: int
    rows: int
    cols: int
    kept: tuple[int, ...]
    whole: bool = False


@dataclass(frozen=True)
class Reply:
    """What the model said about a scene under one recipe.

    Attributes:
        recipe: "hiprune:0.222"; "vanilla" for the unpruned model.
        text: the reply.
        right: whether it is the answer.
        tokens: visual tokens before and after.
        entering: visual tokens entering a layer, mean.
        stages: of the cuts, in order.
    """

    recipe: str
    text: str
    right: bool
    tokens: tuple[int, int]
    entering: float
    stages: tuple[Stage, ...] = ()


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


def example_samples(canvas: Canvas) -> list[Sample]:
    """The questions asked: reading a plate, counting, a colour, each about a scene full enough to be worth a look."""
    return [_first_rich(task, category, canvas) for task, category in _ASKED]


def _first_rich(task: str, category: str, canvas: Canvas) -> Sample:
    fallback = None
    for sample in TASKS[task].samples(_TRIES, canvas, seed=SEED):
        if sample.category != category:
            continue
        fallback = fallback or sample
        scene = sample.scene
        if scene.plate and scene.letter and 3 <= len(scene.objects) <= 4 and scene.background == _background(category):
            return sample
    assert fallback is not None
    return fallback


def _background(category: str) -> str:
    return "photo" if category == "ocr" else "waves" if category == "count" else "checks"


def write_examples(
    folder: str | Path,
    model_name: str,
    model: Any,
    processor: Any,
    recipes: Iterable[Recipe | str],
    weights: str = "",
    *,
    text_tower: TextTower | None = None,
) -> list[Path]:
    """Ask the model about the example scenes, unpruned and under each recipe, and keep what it kept.

    The bench runner calls this once a model. Recipes that the folder has already are not run again, so a call that
    has nothing to do costs nothing.

    Args:
        folder: the result folder.
        model_name: as in `store.Run.model`.
        model, processor: of transformers.
        recipes: recipes, or their strings with budgets ("hiprune:0.222").
        weights: as in `store.Run.weights`; examples of other weights are made anew.
        text_tower: for methods that compare the image with the question.

    Returns:
        The files of this model's examples.

    Raises:
        UserError: a recipe that cannot act on the model, or a folder that is not one of results.
    """
    target = Path(folder) / "examples"
    path = target / f"{slug(model_name)}.json"
    parsed = [vlmprune.recipe(text) for text in recipes]
    known = _replies_of(path, weights)
    if known is not None and all(name in replies for replies in known for name in [VANILLA, *map(recorded, parsed)]):
        return _files(path)
    make_folder(check_folder(Path(folder), "examples"))
    target.mkdir(exist_ok=True)
    samples = example_samples(canvas_for(model.config))
    scenes = []
    for number, sample in enumerate(samples):
        picture = target / f"{slug(model_name)}-{number + 1}.png"
        sample.image.save(picture)
        replies = dict(known[number]) if known is not None and number < len(known) else {}
        for item in [None, *parsed]:
            name = VANILLA if item is None else recorded(item)
            if name not in replies:
                replies[name] = asdict(_ask(model, processor, sample, item, text_tower))
        scenes.append(
            {
                "picture": picture.name,
                "size": sample.image.size,
                "window": seen_window(processor, sample.image.size),
                "question": sample.question,
                "kind": sample.kind,
                "options": sample.options,
                "answer": sample.answers[0],
                "replies": replies,
            }
        )
    write_json(path, {"schema": SCHEMA, "model": model_name, "weights": weights, "scenes": scenes})
    return _files(path)


def slug(name: str) -> str:
    """A model's name as part of a file name."""
    return re.sub(r"[^\w.-]+", "_", name).strip("_.")[-80:] or "model"


def _replies_of(path: Path, weights: str) -> list[dict[str, Any]] | None:
    """The replies of each scene that the folder has for these weights."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["schema"] == SCHEMA and content["weights"] == weights:
            return [scene["replies"] for scene in content["scenes"]]
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None


def _files(path: Path) -> list[Path]:
    return [path, *sorted(path.parent.glob(f"{path.stem}-[0-9].png"))]


def _ask(model: Any, processor: Any, sample: Sample, asked: Recipe | None, text_tower: TextTower | None) -> Reply:
    inputs = protocol_for(processor).inputs(processor, [sample])
    length = TASKS[sample.id.partition("/")[0]].max_new_tokens
    if asked is None:
        text = generate(model, processor, inputs, length)
        count = int((inputs["input_ids"] == model.config.image_token_id).sum())
        return Reply(VANILLA, text, _is_right(sample, text), (count, count), float(count))
    session = vlmprune.prune(model, asked, text_tower=text_tower)
    session.question = sample.question
    with session:
        text = generate(model, processor, inputs, length)
    last, name = session.last, recorded(asked)
    before, after = last.tokens[0]
    return Reply(name, text, _is_right(sample, text), (before, after), round(last.entering[0], 2), _stages(last, asked))


def _stages(last: RunReport, asked: Recipe) -> tuple[Stage, ...]:
    """The cuts of a run on one image; none where its slots are not known to cover it."""
    if not last.wholes[0][0] or not last.stages:
        return ()
    stages, whole = [], last.wholes[0][0][0]
    for layer, kept in last.stages:
        slots = kept[0][0]
        coarse = coarsen(slots, last.stages[0][1][0][0], whole.grid) if resizes(asked) else None
        shown = whole.cells.cpu()[slots]
        small, cells = coarse or (whole.grid, shown[shown >= 0])
        stages.append(Stage(layer, small.rows, small.cols, tuple(cells.tolist()), whole=coarse is not None))
    return tuple(stages)


def _is_right(sample: Sample, text: str) -> bool:
    return judge(sample.kind, text, sample.answers, sample.options).score > 0


def load_examples(folder: str | Path, model_name: str, weights: Collection[str] = ()) -> list[Example]:
    """The examples of a model; none where they have not been made.

    Args:
        folder: the result folder.
        model_name: as in `store.Run.model`.
        weights: of the results they shall stand beside; examples of other weights are passed over.

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
        raise UserError(f"{str(path)!r} is broken: delete it, and {bench_into(folder)} makes it anew.") from None


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
    stages = tuple(Stage(**{**stage, "kept": tuple(stage["kept"])}) for stage in values["stages"])
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
            f"{bench_into(folder)} makes it anew."
        ) from None


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
        image = draw_stage(drawn, reply.stages[-1], window) if reply.stages else drawn
        panels.append(Panel(image, f"{reply.recipe}: {reply.tokens[1]} tokens\n{verdict(reply)}"))
    columns = min(6, max(3, round(math.sqrt(len(panels)))))
    return sheet(panels, columns, [f"“{example.question}” {example.answer}"])


def draw_stage(image: Image.Image, stage: Stage, window: Window) -> Image.Image:
    """What a cut left, drawn over the picture; `window` in pixels of `image`."""
    return draw(image, Grid(stage.rows, stage.cols), torch.tensor(stage.kept), window=window, cells=stage.whole)


def verdict(reply: Reply) -> str:
    """The reply in quotes and whether it is right, in words."""
    return f"“{shorten(reply.text, 120)}” {'right' if reply.right else 'wrong'}"
