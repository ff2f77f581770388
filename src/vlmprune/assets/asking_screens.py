"""Questions about a screenshot: a button's colour, letter or box."""

from __future__ import annotations

import numpy as np

from vlmprune.assets.asking import Question, Voice, box_words
from vlmprune.assets.screens import Screen

SCREEN_TASKS = ("button_color", "button_letter", "button_box")


def ask_screen(screen: Screen, rng: np.random.Generator, task: str, first_wording_share: float = 0.0) -> list[Question]:
    """A question of one type about a screenshot; none where a letter is asked by colour and no colour is unique.

    Args:
        task: one of `SCREEN_TASKS`.
        first_wording_share: see `Voice`.
    """
    if task not in SCREEN_TASKS:
        raise ValueError(f"A screenshot has no questions of type {task!r}.")
    voice = Voice(rng, first_wording_share)
    colors = [button.color for button in screen.buttons]
    named = [b for b in screen.buttons if task != "button_letter" or colors.count(b.color) == 1]
    if not named:
        return []
    button = voice.pick(named)
    answer = {
        "button_color": button.color,
        "button_letter": button.letter,
        "button_box": box_words(button.box, screen.size),
    }[task]
    text = voice.say(task, letter=button.letter, color=button.color)
    return [Question(task, text, answer, None, (button.region,))]
