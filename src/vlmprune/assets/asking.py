"""What every kind of question is made with: the question, wordings drawn at random, and boxes as words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from vlmprune.assets.ink import Box
from vlmprune.assets.wordings import WORDINGS

T = TypeVar("T")


@dataclass(frozen=True)
class Question:
    """One question.

    Attributes:
        task: its task type.
        text: lower-case words and signs, separated by spaces.
        answer: the only right answer, written like `text` (digits apart: "4 0 7").
        pair: the same number for the two questions of a yes/no pair of one scene, else None.
        regions: ids in `Scene.masks` (or `Clip.masks`) that the question is about; empty for the whole image.
        picture: the number of the picture that `regions` count in, from 0.
    """

    task: str
    text: str
    answer: str
    pair: int | None = None
    regions: tuple[int, ...] = ()
    picture: int = 0


@dataclass
class Voice:
    """Puts questions into words.

    Attributes:
        rng: the only source of randomness.
        first_wording_share: share of questions in a type's first wording; the rest draw from all wordings.
    """

    rng: np.random.Generator
    first_wording_share: float = 0.0

    def say(self, key: str, **slots: str) -> str:
        """A wording with its slots filled."""
        wordings = WORDINGS[key]
        first = self.first_wording_share and self.rng.random() < self.first_wording_share
        return wordings[0 if first else int(self.rng.integers(len(wordings)))].format(**slots)

    def pick(self, items: Sequence[T]) -> T:
        """A random item."""
        return items[int(self.rng.integers(len(items)))]


def article(color: str) -> str:
    return "an" if color[0] in "aeiou" else "a"


def spaced(number: str) -> str:
    """Digits apart: "4 0 7"."""
    return " ".join(number)


def box_words(box: Box, size: tuple[int, int]) -> str:
    """A box as an answer: left, top, right, bottom, each in two digits.

    Each is a hundredth of the picture's width or height, rounded, at most 99.

    Args:
        box: in pixels.
        size: width and height of the picture in pixels.
    """
    shares = [value / side for value, side in zip(box, (*size, *size), strict=True)]
    return spaced("".join(f"{min(99, round(100 * share)):02d}" for share in shares))
