"""Questions about a page: the number at a letter, the letter of a number."""

from __future__ import annotations

import numpy as np

from vlmprune.assets.asking import Question, Voice, spaced
from vlmprune.assets.world import Region, Scene

PAGE_TASKS = ("entry", "key")


def ask_page(page: Scene, rng: np.random.Generator, task: str, first_wording_share: float = 0.0) -> list[Question]:
    """A question of one type about a page of `draw_page`.

    Args:
        task: one of `PAGE_TASKS`.
        first_wording_share: see `Voice`.
    """
    voice = Voice(rng, first_wording_share)
    entry = voice.pick(entries(page))
    letter, number = entry[0].name, spaced("".join(region.name for region in entry[1:]))
    regions = tuple(region.id for region in entry)
    if task == "entry":
        return [Question(task, voice.say(task, letter=letter), number, None, regions)]
    if task == "key":
        return [Question(task, voice.say(task, number=number), letter, None, regions)]
    raise ValueError(f"A page has no questions of type {task!r}.")


def entries(page: Scene) -> list[list[Region]]:
    """The regions of each entry: its letter, then its digits."""
    found: list[list[Region]] = []
    for region in page.regions:
        if region.kind == "letter":
            found.append([])
        found[-1].append(region)
    return found
