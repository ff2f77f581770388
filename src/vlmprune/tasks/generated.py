"""The generated tasks: six ability dimensions, held-out scenes and photographs, the same for every method and budget.

Scene i of a task is drawn from its own generator (task, version, i), so every run takes the
start of the same endless stream, whatever its length, the batch size or the order of work.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from PIL import Image

from vlmprune.assets.questions import BENCHMARK_TASKS, CHANCE, Asker, Question
from vlmprune.assets.world import Scene, draw_scene
from vlmprune.data.sample import Sample
from vlmprune.tasks.canvas import Canvas
from vlmprune.tasks.task import Place, Task

HELD_OUT_SEED = 20_261_120  # the stream of test scenes; training draws from other seeds and other photographs
PHOTO_SHARE = 0.25
_MAX_DRAWS = 200  # scenes tried before a question type is given up on

_KINDS = {
    "attr_yn": "yesno",
    "spatial": "yesno",
    "compare": "yesno",
    "exist": "yesno",
    "count": "number",
    "mcq": "choice",
}


@dataclass(frozen=True, eq=False)
class DrawnPicture:
    """A generated scene as a picture.

    Attributes:
        scene: with its objects and masks.
        scale: enlargement before the model's processor sees it.
        regions: ids in `scene.masks` that the question is about.
    """

    scene: Scene
    scale: float
    regions: tuple[int, ...]

    def open(self) -> Image.Image:
        picture = Image.fromarray(self.scene.image)
        if self.scale == 1.0:
            return picture
        size = (round(picture.width * self.scale), round(picture.height * self.scale))
        return picture.resize(size, Image.Resampling.BICUBIC)

    def content(self) -> bytes:
        return repr((self.scene.image.shape, self.scale)).encode() + self.scene.image.tobytes()


@dataclass(frozen=True, kw_only=True)
class GeneratedTask(Task):
    """A task of drawn scenes."""

    endless: ClassVar[bool] = True

    @property
    def categories(self) -> tuple[str, ...]:
        """Question types, asked in turn."""
        return BENCHMARK_TASKS[self.name]

    def samples(self, place: Place = Place(), seed: int = HELD_OUT_SEED) -> Iterator[Sample]:  # noqa: B008 (frozen)
        """An endless stream; another `seed` gives another one."""
        number = 0
        for index in range(10**9):
            rng = np.random.default_rng((seed, zlib.crc32(self.name.encode()), self.version, index))
            scene, questions = self._draw(rng, place.canvas, self.categories[index % len(self.categories)])
            for question in questions:
                yield self._sample(number, index, scene, question, place.canvas.scale)
                number += 1

    def _draw(self, rng: np.random.Generator, canvas: Canvas, category: str) -> tuple[Scene, list[Question]]:
        for _ in range(_MAX_DRAWS):
            size = canvas.sizes[int(rng.integers(len(canvas.sizes)))]
            scene = draw_scene(rng, size, photos="held_out", photo_share=PHOTO_SHARE)
            if questions := Asker(scene, rng).ask(category):
                return scene, questions
        raise RuntimeError(f"No scene allowed a question of type {category!r}.")

    def _sample(self, number: int, index: int, scene: Scene, question: Question, scale: float) -> Sample:
        return Sample(
            id=f"{self.name}/{number:05d}",
            pictures=(DrawnPicture(scene, scale, question.regions),),
            question=question.text,
            kind=_KINDS.get(question.task, "words"),
            options=split_options(question.text) if question.task == "mcq" else (),
            answers=(question.answer,),
            group=f"{self.name}/scene-{index:05d}",
            category=question.task,
        )


def split_options(question: str) -> tuple[str, ...]:
    """The option texts of "... ? (a) red (b) dark blue"."""
    return tuple(part.strip() for part in re.split(r"\([a-d]\)", question)[1:])


def guess(name: str) -> float:
    """Mean chance of the task's categories, percent."""
    return 100.0 * float(np.mean([CHANCE[category] for category in BENCHMARK_TASKS[name]]))
