"""Makes the example scenes: what each method kept of them, and what the model then said.

They are made once, while a model is at hand, and stored beside the results (`vlmprune.ask.scenes`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import vlmprune
from vlmprune.ask.run import generate
from vlmprune.ask.scenes import SCHEMA, Cut, Reply, slug
from vlmprune.bench.load import Loaded
from vlmprune.bench.marks import recorded
from vlmprune.bench.protocol import Asker, protocol_for
from vlmprune.bench.store import VANILLA, write_json
from vlmprune.core.outputs import check_folder, make_folder
from vlmprune.core.recipe import Recipe
from vlmprune.core.report import RunReport
from vlmprune.data.sample import Sample
from vlmprune.drawing.shown import shown_of
from vlmprune.drawing.window import seen_window
from vlmprune.scoring.replies import score_reply
from vlmprune.tasks import generated_tasks
from vlmprune.tasks.canvas import Canvas, canvas_for
from vlmprune.tasks.drawing import DrawnPicture
from vlmprune.tasks.task import Place

SEED = 20_261_121  # of the example scenes; neither training nor the benchmark draws from it
_ASKED = (("synth-ocr", "ocr"), ("synth-math", "count"), ("synth-instruct", "color"))
_TRIES = 400  # questions looked through for a scene worth showing


def example_samples(canvas: Canvas) -> list[Sample]:
    """The questions: reading a plate, counting, a colour; each about a scene with several objects."""
    return [_first_rich(task, category, canvas) for task, category in _ASKED]


def _first_rich(task: str, category: str, canvas: Canvas) -> Sample:
    fallback = None
    for sample in islice(generated_tasks()[task].samples(Place(canvas), seed=SEED), _TRIES):
        if sample.category != category:
            continue
        fallback = fallback or sample
        scene = drawn(sample).scene
        if scene.plate and scene.letter and 3 <= len(scene.objects) <= 4 and scene.background == _background(category):
            return sample
    assert fallback is not None
    return fallback


def drawn(sample: Sample) -> DrawnPicture:
    """The scene that a generated question is about."""
    (picture,) = sample.pictures
    assert isinstance(picture, DrawnPicture)
    return picture


def _background(category: str) -> str:
    return "photo" if category == "ocr" else "waves" if category == "count" else "checks"


def write_examples(folder: str | Path, loaded: Loaded, recipes: Iterable[Recipe | str]) -> list[Path]:
    """Ask the model about the example scenes, unpruned and under each recipe, and store what was kept and answered.

    `vlmprune bench` calls this once for each model. Recipes that the folder already has are not run again, so a call
    that has nothing to do costs nothing. Examples of other weights are replaced.

    Args:
        folder: the result folder.
        loaded: the model.
        recipes: recipes, or their strings with budgets ("hiprune:0.222").

    Returns:
        The files of this model's examples.

    Raises:
        UserError: a recipe cannot act on the model, or the folder is not a result folder.
    """
    target = Path(folder) / "examples"
    path = target / f"{slug(loaded.name)}.json"
    parsed = [vlmprune.recipe(text) for text in recipes]
    known = _replies_of(path, loaded.weights)
    if known is not None and all(name in replies for replies in known for name in [VANILLA, *map(recorded, parsed)]):
        return _files(path)
    make_folder(check_folder(Path(folder), "examples"))
    target.mkdir(exist_ok=True)
    samples = example_samples(canvas_for(loaded.model.config))
    scenes = []
    for number, sample in enumerate(samples):
        picture = target / f"{slug(loaded.name)}-{number + 1}.png"
        sample.images[0].save(picture)
        replies = dict(known[number]) if known is not None and number < len(known) else {}
        for item in [None, *parsed]:
            name = VANILLA if item is None else recorded(item)
            if name not in replies:
                replies[name] = asdict(_ask(loaded, sample, item))
        scenes.append(
            {
                "picture": picture.name,
                "size": sample.images[0].size,
                "window": seen_window(loaded.processor, sample.images[0].size),
                "question": sample.question,
                "kind": sample.kind,
                "options": sample.options,
                "answer": sample.answers[0],
                "replies": replies,
            }
        )
    write_json(path, {"schema": SCHEMA, "model": loaded.name, "weights": loaded.weights, "scenes": scenes})
    return _files(path)


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


def _ask(loaded: Loaded, sample: Sample, asked: Recipe | None) -> Reply:
    model, processor = loaded.model, loaded.processor
    task = generated_tasks()[sample.id.partition("/")[0]]
    inputs = Asker(protocol_for(processor), task, processor, model.config.model_type).inputs([sample])
    if asked is None:
        text = generate(model, processor, inputs, task.max_new_tokens)
        count = int((inputs["input_ids"] == model.config.image_token_id).sum())
        return Reply(VANILLA, text, _is_right(sample, text), (count, count), float(count))
    session = loaded.session(asked)
    session.question = sample.question
    with session:
        text = generate(model, processor, inputs, task.max_new_tokens)
    last = session.last
    before, after = last.tokens[0]
    return Reply(
        recorded(asked), text, _is_right(sample, text), (before, after), round(last.entering[0], 2), _cuts(last)
    )


def _cuts(last: RunReport) -> tuple[Cut, ...]:
    """The cuts of a run on one image; none where its slots are not known to cover it."""
    if not last.wholes[0][0] or not last.stages:
        return ()
    whole = last.wholes[0][0][0]
    return tuple(Cut.of(layer, shown_of(last, whole, stage)) for stage, (layer, _) in enumerate(last.stages))


def _is_right(sample: Sample, text: str) -> bool:
    return score_reply(sample.kind, text, sample.answers, sample.options).score > 0
