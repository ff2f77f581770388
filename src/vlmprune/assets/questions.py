"""Questions about generated pictures and clips, with their answers, in several wordings per type.

Each type is modelled on a benchmark; `BENCHMARK_TASKS` groups them into tasks:

- `exist`: "is there a red star ?"; half of the negatives recombine a colour and a shape that are there (POPE).
- `attr_yn`, `spatial`: yes/no pairs, one question of a pair is true and its partner false (MME).
- `count`, `compare`: the number of objects, and a comparison of it with a number.
- `mcq`: four options "(a)" to "(d)" for a colour, a shape, a size or the background (ScienceQA, MMBench).
- `ocr`, `letter`: the digits on the plate, the single letter.
- `color`, `shape`, `position`, `size`, `texture`: lookups that ask for a word or two.
- `instruct`: an answer in the asked form ("answer twice .", "answer in the form color = value .").
- `box`: the box of an object in hundredths of the picture (RefCOCO).

`SCENE_TASKS` are asked about one scene; `PAGE_TASKS`, `SCREEN_TASKS`, `PAIR_TASKS` and `CLIP_TASKS` about pages,
screenshots, two scenes and clips.
`TRAINING_TASKS` holds simpler or rarer questions that only training asks.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from vlmprune.assets import asking_forms, asking_lookup, asking_yesno
from vlmprune.assets.about_scene import AboutScene
from vlmprune.assets.asking import Question as Question
from vlmprune.assets.asking_clips import CLIP_TASKS as CLIP_TASKS
from vlmprune.assets.asking_clips import ask_clip as ask_clip
from vlmprune.assets.asking_pages import PAGE_TASKS as PAGE_TASKS
from vlmprune.assets.asking_pages import ask_page as ask_page
from vlmprune.assets.asking_pairs import PAIR_TASKS as PAIR_TASKS
from vlmprune.assets.asking_pairs import ask_pair as ask_pair
from vlmprune.assets.asking_screens import SCREEN_TASKS as SCREEN_TASKS
from vlmprune.assets.asking_screens import ask_screen as ask_screen
from vlmprune.assets.clips import DIRECTIONS
from vlmprune.assets.wordings import MARKERS, NUMBERS, ORDINALS, RELATIONS, WORDINGS, split_words
from vlmprune.assets.wordings import WORD_PATTERN as WORD_PATTERN
from vlmprune.assets.wordings import normalise_answer as normalise_answer
from vlmprune.assets.world import COLORS, DIGITS, LETTERS, SHAPES, SIZES, TEXTURES, Scene

BENCHMARK_TASKS: dict[str, tuple[str, ...]] = {
    "synth-mme": ("attr_yn", "spatial"),
    "synth-ocr": ("ocr", "letter"),
    "synth-math": ("count", "compare"),
    "synth-choice": ("mcq",),
    "synth-pope": ("exist",),
    "synth-instruct": ("instruct", "color", "shape", "position", "size", "texture"),
    "synth-ground": ("box",),
    "synth-document": PAGE_TASKS,
    "synth-screen": SCREEN_TASKS,
    "synth-images": PAIR_TASKS,
    "synth-video": CLIP_TASKS,
}
TASKS: tuple[str, ...] = tuple(task for tasks in BENCHMARK_TASKS.values() for task in tasks)
SCENE_TASKS: tuple[str, ...] = tuple(
    task for task in TASKS if task not in (*PAGE_TASKS, *SCREEN_TASKS, *PAIR_TASKS, *CLIP_TASKS)
)
TRAINING_TASKS: tuple[str, ...] = ("option", "side", "mcq_size")
CHANCE: dict[str, float] = {  # accuracy of a guess among the answers that fit the question
    "attr_yn": 1 / 2,
    "spatial": 1 / 2,
    "ocr": 0.0,
    "letter": 1 / len(LETTERS),
    "count": 1 / 5,
    "compare": 1 / 2,
    "mcq": 1 / 4,
    "exist": 1 / 2,
    "instruct": 1 / 7,
    "color": 1 / len(COLORS),
    "shape": 1 / len(SHAPES),
    "position": 1 / 4,
    "size": 1 / len(SIZES),
    "texture": 1 / len(TEXTURES),
    "box": 0.0,
    "entry": 0.0,
    "key": 1 / len(LETTERS),
    "button_color": 1 / len(COLORS),
    "button_letter": 1 / len(LETTERS),
    "button_box": 0.0,
    "which_image": 1 / 2,
    "image_color": 1 / len(COLORS),
    "image_count": 1 / 5,
    "moves": 1 / len(DIRECTIONS),
    "becomes": 1 / len(COLORS),
    "appears": 1 / len(SHAPES),
    "order": 1 / 2,
    "flash": 0.0,
    "events": 1 / 4,
}

_ASKERS: dict[str, Callable[[AboutScene], list[Question]]] = {
    "exist": asking_yesno.exist,
    "attr_yn": asking_yesno.attr_yn,
    "spatial": asking_yesno.spatial,
    "side": asking_yesno.side,
    "count": asking_lookup.count,
    "compare": asking_yesno.compare,
    "color": asking_lookup.color,
    "shape": asking_lookup.shape,
    "position": asking_lookup.position,
    "size": asking_lookup.size,
    "texture": asking_lookup.texture,
    "ocr": asking_lookup.ocr,
    "letter": asking_lookup.letter,
    "mcq": asking_forms.mcq,
    "mcq_size": asking_forms.mcq_size,
    "option": asking_forms.option,
    "instruct": asking_forms.instruct,
    "box": asking_lookup.box,
}


@dataclass
class Asker(AboutScene):
    """Asks about one scene.

    Attributes:
        scene: the scene.
        rng: the only source of randomness.
        first_wording_share: share of questions in a task's first wording; the rest draw from all wordings.
        two_option_share: share of multiple-choice questions with two options instead of four.
        pairs: how many yes/no pairs were asked.
    """

    def ask(self, task: str) -> list[Question]:
        """Questions of a task type: two for a pair, none when the scene does not allow any."""
        return _ASKERS[task](self)


def ask_all(scene: Scene, rng: np.random.Generator, tasks: Sequence[str] = SCENE_TASKS) -> list[Question]:
    """One question (or pair) of each task type that the scene allows, in mixed wordings."""
    asker = Asker(scene, rng)
    return [question for task in tasks for question in asker.ask(task)]


@cache
def vocabulary() -> tuple[str, ...]:
    """Every word that a question or an answer may hold, in a fixed order."""
    texts = [wording for wordings in WORDINGS.values() for wording in wordings]
    texts = [re.sub(r"\{\w+\}", " ", text) for text in texts]
    texts += [words for relation in RELATIONS.values() for words in relation]
    texts += ["yes no a an object the is center top bottom left right above below"]
    texts += [*COLORS, *SHAPES, *SIZES, *TEXTURES, *NUMBERS, *DIGITS, *LETTERS, *MARKERS, *ORDINALS, *DIRECTIONS]
    return tuple(sorted({word for text in texts for word in split_words(text)}))
