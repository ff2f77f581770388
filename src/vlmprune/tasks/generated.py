"""The generated tasks: drawn pictures and clips, held-out photographs, the same for every method and budget.

Drawing i of a task is made by its own generator (task, version, i), so every run takes the
start of the same endless stream, whatever its length, the batch size or the order of work.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from vlmprune.assets.clips import Clip
from vlmprune.assets.questions import BENCHMARK_TASKS, CHANCE, Question
from vlmprune.data.sample import Sample
from vlmprune.tasks.canvas import Canvas
from vlmprune.tasks.drawing import Drawer, DrawnClip, DrawnPicture, Pictures, clips, scenes
from vlmprune.tasks.task import Place, Task

HELD_OUT_SEED = 20_261_120  # the stream of the tests; training draws from other seeds and other photographs
_MAX_DRAWS = 200  # drawings tried before a question type is given up on

_KINDS = {
    "attr_yn": "yesno",
    "spatial": "yesno",
    "compare": "yesno",
    "exist": "yesno",
    "count": "number",
    "image_count": "number",
    "events": "number",
    "mcq": "choice",
    "box": "box",
    "button_box": "box",
}


@dataclass(frozen=True, kw_only=True)
class GeneratedTask(Task):
    """A task of drawings.

    Attributes:
        drawer: draws what is shown, and asks about it.
        default: whether it is asked where no tasks are named.
        tabled: whether the papers' tables of accuracy ask the like; boxes, pages, screenshots, several pictures and
            clips are in none of them.
    """

    drawer: Drawer = scenes
    default: bool = True
    tabled: bool = True

    @property
    def categories(self) -> tuple[str, ...]:
        """Question types, asked in turn."""
        return BENCHMARK_TASKS[self.name]

    @property
    def endless(self) -> bool:
        return True

    @property
    def has_videos(self) -> bool:
        return self.drawer is clips

    def samples(self, place: Place = Place(), seed: int = HELD_OUT_SEED) -> Iterator[Sample]:  # noqa: B008 (frozen)
        """An endless stream; another `seed` gives another one."""
        number = 0
        for index in range(10**9):
            rng = np.random.default_rng((seed, zlib.crc32(self.name.encode()), self.version, index))
            drawn, questions = self._draw(rng, place.canvas, self.categories[index % len(self.categories)])
            for question in questions:
                yield self._sample(number, index, drawn, question, place.canvas.scale)
                number += 1

    def _draw(self, rng: np.random.Generator, canvas: Canvas, category: str) -> tuple[Pictures | Clip, list[Question]]:
        for _ in range(_MAX_DRAWS):
            drawn, questions = self.drawer(rng, canvas, category)
            if questions:
                return drawn, questions
        raise RuntimeError(f"No drawing allowed a question of type {category!r}.")

    def _sample(self, number: int, index: int, drawn: Pictures | Clip, question: Question, scale: float) -> Sample:
        return Sample(
            id=f"{self.name}/{number:05d}",
            question=question.text,
            kind=_KINDS.get(question.task, "words"),
            options=split_options(question.text) if question.task == "mcq" else (),
            answers=(question.answer,),
            group=f"{self.name}/scene-{index:05d}",
            category=question.task,
            **_shown(drawn, question, scale),
        )


def _shown(drawn: Pictures | Clip, question: Question, scale: float) -> dict[str, Any]:
    """The fields of a sample that hold its pictures or its video."""
    if isinstance(drawn, Clip):
        return {"video": DrawnClip(drawn, scale, question.regions)}
    regions = (question.regions if k == question.picture else () for k in range(len(drawn)))
    return {"pictures": tuple(DrawnPicture(one, scale, ids) for one, ids in zip(drawn, regions, strict=True))}


def split_options(question: str) -> tuple[str, ...]:
    """The option texts of "... ? (a) red (b) dark blue"."""
    return tuple(part.strip() for part in re.split(r"\([a-d]\)", question)[1:])


def guess(name: str) -> float:
    """Mean chance of the task's categories, percent."""
    return 100.0 * float(np.mean([CHANCE[category] for category in BENCHMARK_TASKS[name]]))
