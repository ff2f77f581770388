"""The generated tasks: six ability dimensions, held-out scenes and photographs, the same for every method and budget.

Scene i of a task is drawn from its own generator (task, version, i), so every run takes the
start of the same endless stream, whatever its length, the batch size or the order of work.
"""

from __future__ import annotations

import difflib
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from itertools import islice
from typing import Any

import numpy as np
from PIL import Image

from vlmprune.assets.questions import BENCHMARK_TASKS, CHANCE, Asker, Question
from vlmprune.assets.world import Scene, draw_scene
from vlmprune.bench.score import ACCURACY, F1, METRICS, MME, Metric, Verdict, judge, split_options
from vlmprune.core.errors import UserError

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


@dataclass(frozen=True)
class Canvas:
    """How scenes are drawn for a model.

    Attributes:
        sizes: (width, height) in pixels of the drawn scenes; each scene gets one at random.
        scale: enlargement of the drawn scene before the model's processor sees it.
    """

    sizes: tuple[tuple[int, int], ...] = ((112, 112),)
    scale: float = 1.0

    def __str__(self) -> str:
        return "+".join(f"{width}x{height}" for width, height in self.sizes) + f"*{self.scale:g}"


FIXED = Canvas()
MIXED = Canvas(((120, 120), (160, 90), (90, 160)))
_CELL = 10  # pixels per visual slot that the mixed sizes are drawn for


def canvas_for(config: Any) -> Canvas:
    """Scenes that suit a model: its tower's fixed size, or the mixed sizes scaled to its slots.

    Args:
        config: the transformers configuration.
    """
    vision = getattr(config, "vision_config", config)
    side, patch = getattr(vision, "image_size", None), getattr(vision, "patch_size", None)
    merge = getattr(vision, "spatial_merge_size", None)
    if isinstance(side, int):
        return Canvas(FIXED.sizes, max(1.0, side / FIXED.sizes[0][0]))
    if isinstance(patch, int) and isinstance(merge, int):
        return Canvas(MIXED.sizes, max(1.0, patch * merge / _CELL))
    return Canvas(FIXED.sizes, 4.0)


@dataclass(frozen=True, eq=False)
class Sample:
    """One question about one image.

    Attributes:
        id: unique in the task, "synth-mme/00012".
        scene: the drawn scene, with its objects and masks.
        scale: enlargement of the scene in `image`.
        question: as it is asked.
        kind: what is looked for in the reply (`score.KINDS`).
        options: texts of the options of a multiple-choice question.
        answers: the right answers.
        group: the unit of statistics: the two questions of a pair share it.
        category: task type of the question.
        dimension: ability.
        regions: ids in `scene.masks` that the question is about.
    """

    id: str
    scene: Scene
    scale: float
    question: str
    kind: str
    options: tuple[str, ...]
    answers: tuple[str, ...]
    group: str
    category: str
    dimension: str
    regions: tuple[int, ...]

    @cached_property
    def image(self) -> Image.Image:
        """The picture as the processor gets it, RGB."""
        picture = Image.fromarray(self.scene.image)
        if self.scale == 1.0:
            return picture
        size = (round(picture.width * self.scale), round(picture.height * self.scale))
        return picture.resize(size, Image.Resampling.BICUBIC)


@dataclass(frozen=True)
class Task:
    """A benchmark task.

    Attributes:
        name: as given to `--tasks`.
        dimension: the ability it stands for (UniPruneBench's six).
        summary: one line.
        categories: question types, asked in turn.
        metric: the primary metric.
        chance: the primary metric, percent, without looking: by guessing among the fitting answers or, where that
            is better, by always giving the same one.
        version: raised when scenes, questions or scoring change.
        max_new_tokens: length of a reply.
        paired: whether questions come in yes/no pairs about one scene.
    """

    name: str
    dimension: str
    summary: str
    metric: Metric
    chance: float
    version: int = 1
    max_new_tokens: int = 16
    paired: bool = False

    @property
    def categories(self) -> tuple[str, ...]:
        return BENCHMARK_TASKS[self.name]

    def score(self, kind: str, reply: str, answers: tuple[str, ...], options: tuple[str, ...] = ()) -> Verdict:
        """The answer found in a reply, and its score."""
        return judge(kind, reply, answers, options)

    def samples(self, n: int, canvas: Canvas = FIXED, seed: int = HELD_OUT_SEED) -> Iterator[Sample]:
        """The first `n` samples of the stream; of a paired task the largest even number up to `n`, at least 2."""
        wanted = max(2, n // 2 * 2) if self.paired else n
        return islice(self._stream(canvas, seed), wanted)

    def _stream(self, canvas: Canvas, seed: int) -> Iterator[Sample]:
        number = 0
        for index in range(10**9):
            rng = np.random.default_rng((seed, zlib.crc32(self.name.encode()), self.version, index))
            scene, questions = self._draw(rng, canvas, self.categories[index % len(self.categories)])
            for question in questions:
                yield self._sample(number, index, scene, question, canvas.scale)
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
            scene=scene,
            scale=scale,
            question=question.text,
            kind=_KINDS.get(question.task, "words"),
            options=split_options(question.text) if question.task == "mcq" else (),
            answers=(question.answer,),
            group=f"{self.name}/scene-{index:05d}",
            category=question.task,
            dimension=self.dimension,
            regions=question.regions,
        )


def _guess(name: str) -> float:
    """Mean chance of the task's categories, percent."""
    return 100.0 * float(np.mean([CHANCE[category] for category in BENCHMARK_TASKS[name]]))


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task(
            "synth-mme",
            "comprehensive evaluation",
            "yes/no pairs about colours and places; a pair with both right counts extra",
            MME,
            chance=37.5,  # half of the questions and a quarter of the pairs
            paired=True,
        ),
        Task("synth-ocr", "OCR", "digits on a plate, a single letter", ACCURACY, _guess("synth-ocr")),
        Task("synth-math", "mathematical reasoning", "counting, comparing a count", ACCURACY, _guess("synth-math")),
        Task(
            "synth-choice", "multidisciplinary knowledge", "multiple choice of four", ACCURACY, _guess("synth-choice")
        ),
        Task("synth-pope", "hallucination", "is there such an object; adversarial negatives", F1, chance=200 / 3),
        Task(
            "synth-instruct",
            "instruction following",
            "answers in the asked form, lookups in a word or two",
            ACCURACY,
            _guess("synth-instruct"),
        ),
    )
}


def get_task(name: str) -> Task:
    """The task of that name, or UserError."""
    if name in TASKS:
        return TASKS[name]
    close = difflib.get_close_matches(name, TASKS, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"choose from {', '.join(TASKS)}."
    raise UserError(f"There is no task {name!r}: {hint}")


def digest(samples: list[Sample]) -> str:
    """Hash of everything a model is shown and scored by."""
    state = sha256()
    for sample in samples:
        text = "\x1f".join((sample.id, sample.question, sample.kind, *sample.options, *sample.answers, sample.group))
        state.update(text.encode())
        state.update(repr((sample.scene.image.shape, sample.scale)).encode())
        state.update(sample.scene.image.tobytes())
    return state.hexdigest()[:16]


__all__ = ["FIXED", "METRICS", "MIXED", "TASKS", "Canvas", "Sample", "Task", "canvas_for", "digest", "get_task"]
