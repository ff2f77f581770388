"""One scene as questions see it: its unique objects, relations, yes/no pairs and options."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vlmprune.assets.asking import Question, Voice
from vlmprune.assets.wordings import MARKERS
from vlmprune.assets.world import Scene, SceneObject

CENTER_MARGIN = 6.0  # pixels between a centre and the image's middle line


@dataclass
class AboutScene:
    """What questions about one scene are made with; attributes as in `Asker`."""

    scene: Scene
    rng: np.random.Generator
    first_wording_share: float = 0.0
    two_option_share: float = 0.0
    pairs: int = 0

    def say(self, key: str, **slots: str) -> str:
        """A wording with its slots filled."""
        return Voice(self.rng, self.first_wording_share).say(key, **slots)

    def pick(self, items: Sequence[str]) -> str:
        return Voice(self.rng).pick(items)

    def unique(self, attribute: str) -> tuple[int, SceneObject] | None:
        """A random object whose `attribute` no other object shares, with its region id."""
        values = [getattr(thing, attribute) for thing in self.scene.objects]
        found = [k for k, value in enumerate(values) if values.count(value) == 1]
        return self.object_of(found)

    def object_of(self, indices: Sequence[int]) -> tuple[int, SceneObject] | None:
        if not indices:
            return None
        k = indices[int(self.rng.integers(len(indices)))]
        return k + 1, self.scene.objects[k]

    def pair_of(self, task: str, true: str, false: str, regions: tuple[int, ...]) -> list[Question]:
        """A yes/no pair, in random order."""
        self.pairs += 1
        pair = [
            Question(task, true, "yes", self.pairs, regions),
            Question(task, false, "no", self.pairs, regions),
        ]
        return pair if self.rng.random() < 0.5 else pair[::-1]

    def options(self, value: str, values: Sequence[str]) -> tuple[str, str]:
        """The options as text, and the marker of `value`."""
        count = 2 if self.two_option_share and self.rng.random() < self.two_option_share else 4
        others = [other for other in values if other != value]
        chosen = [others[int(k)] for k in self.rng.permutation(len(others))[: count - 1]]
        place = int(self.rng.integers(len(chosen) + 1))
        chosen.insert(place, value)
        return " ".join(f"{m} {option}" for m, option in zip(MARKERS, chosen, strict=False)), MARKERS[place]


def name_of(thing: SceneObject) -> str:
    return f"{thing.color} {thing.shape}"


def relation_of(asker: AboutScene, dx: float, dy: float, margin: float) -> tuple[str, str] | None:
    """A relation that holds for an offset of (dx, dy) pixels, and its opposite."""
    true = [("left", "right") if dx < 0 else ("right", "left")] if abs(dx) >= margin else []
    true += [("above", "below") if dy < 0 else ("below", "above")] if abs(dy) >= margin else []
    return true[int(asker.rng.integers(len(true)))] if true else None


def from_center(asker: AboutScene, thing: SceneObject) -> tuple[float, float]:
    width, height = asker.scene.size
    return thing.center[0] - width / 2, thing.center[1] - height / 2
