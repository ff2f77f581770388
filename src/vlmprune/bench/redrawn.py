"""The pictures of generated questions drawn once more: results hold no pictures, and these need no data."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import islice

from PIL import Image

from vlmprune.bench.store import Result
from vlmprune.tasks import generated_tasks
from vlmprune.tasks.canvas import Canvas
from vlmprune.tasks.task import Place


def redrawn(result: Result, questions: Mapping[str, str]) -> dict[str, Image.Image]:
    """The first picture of some of a run's questions, by id, as drawn before any enlargement.

    Nothing of a task that is not generated, that shows clips, or whose questions have changed since the run.

    Args:
        questions: by id, as the records have them; a question that reads otherwise today is another one.
    """
    task, canvas = generated_tasks().get(result.task), _canvas(result.canvas)
    if task is None or canvas is None or task.has_videos or task.version != result.version:
        return {}
    last = max((int(name.rpartition("/")[2]) for name in questions), default=-1)
    asked = islice(task.samples(Place(canvas)), last + 1)
    return {
        sample.id: sample.pictures[0].open()
        for sample in asked
        if questions.get(sample.id) == sample.question and sample.pictures
    }


def _canvas(text: str) -> Canvas | None:
    """From "112x112*3", without the enlargement."""
    sizes = re.findall(r"(\d+)x(\d+)", text)
    return Canvas(tuple((int(width), int(height)) for width, height in sizes)) if sizes else None
