"""What a training step asks: rows of pictures of one kind with questions about them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from training.packing import draw_questions
from training.recipes import IMAGES_A_STEP
from vlmprune.assets.asking_pairs import draw_pair
from vlmprune.assets.pages import draw_page
from vlmprune.assets.questions import Question, ask_page, ask_pair, ask_screen
from vlmprune.assets.screens import draw_screen
from vlmprune.assets.world import Scene, draw_scene

_PAGE = {"entry": 5.0, "key": 4.0}
_SCREEN = {"button_color": 2.0, "button_letter": 2.0, "button_box": 2.5}
_PAIR = {"which_image": 3.5, "image_color": 3.0, "image_count": 1.5}


@dataclass(frozen=True)
class Examples:
    """scenes: row after row, `pictures` for each; questions: those of each row."""

    scenes: list[Scene]
    questions: list[list[Question]]
    pictures: int = 1


def draw_examples(
    kind: str,
    rng: np.random.Generator,
    size: tuple[int, int],
    mix: dict[str, float],
    photo_share: float = 0.25,
    **shares: float,
) -> Examples:
    """A step's examples.

    Args:
        kind: "scene", "page", "screen" or "pair".
        mix, shares: of the questions about scenes, see `packing.draw_questions`.
        photo_share: of the scenes, alone or in pairs, that have a photograph behind them.
    """
    if kind == "scene":
        scenes = [draw_scene(rng, size, photo_share=photo_share) for _ in range(IMAGES_A_STEP)]
        return Examples(scenes, [draw_questions(scene, rng, mix, **shares) for scene in scenes])
    first = shares["first_wording_share"]
    if kind == "pair":
        pairs = [draw_pair(rng, size, photo_share=photo_share) for _ in range(IMAGES_A_STEP // 2)]
        return Examples([s for pair in pairs for s in pair], [_ask(ask_pair, p, rng, _PAIR, first) for p in pairs], 2)
    draw, ask, mixed = (draw_page, ask_page, _PAGE) if kind == "page" else (draw_screen, ask_screen, _SCREEN)
    scenes = [draw(rng, size) for _ in range(IMAGES_A_STEP)]
    return Examples(scenes, [_ask(ask, scene, rng, mixed, first) for scene in scenes])


def _ask(
    ask: Callable[..., list[Question]], about: Any, rng: np.random.Generator, mix: dict[str, float], first: float
) -> list[Question]:
    drawn = [
        q
        for task, expected in mix.items()
        for _ in range(int(expected + rng.random()))
        for q in ask(about, rng, task, first)
    ]
    return [drawn[int(k)] for k in rng.permutation(len(drawn))]
