"""Questions about two scenes that are shown together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np

from vlmprune.assets.asking import Question, Voice, article
from vlmprune.assets.wordings import NUMBERS, ORDINALS
from vlmprune.assets.world import Scene, draw_scene

PAIR_TASKS = ("which_image", "image_color", "image_count")
Pair = tuple[Scene, Scene]


def draw_pair(
    rng: np.random.Generator,
    size: tuple[int, int] = (112, 112),
    *,
    photos: str = "train",
    photo_share: float = 0.25,
) -> Pair:
    """Two scenes of one size; arguments as for `draw_scene`."""
    first, second = (draw_scene(rng, size, photos=photos, photo_share=photo_share) for _ in range(2))
    return first, second


def ask_pair(pair: Pair, rng: np.random.Generator, task: str, first_wording_share: float = 0.0) -> list[Question]:
    """A question of one type about two scenes, none when they do not allow it.

    Args:
        task: one of `PAIR_TASKS`.
        first_wording_share: see `Voice`.
    """
    return _ASKERS[task](pair, Voice(rng, first_wording_share))


def _which_image(pair: Pair, voice: Voice) -> list[Question]:
    """Half of the time about an object whose colour or shape the other scene has too."""
    place = int(voice.rng.integers(2))
    scene, other = pair[place], pair[1 - place]
    there = {(o.color, o.shape) for o in other.objects}
    words = {word for kind in there for word in kind}
    alone = [k for k, o in enumerate(scene.objects) if (o.color, o.shape) not in there]
    near = [k for k in alone if words & {scene.objects[k].color, scene.objects[k].shape}]
    if not alone:
        return []
    k = voice.pick(near if near and voice.rng.random() < 0.5 else alone)
    thing = scene.objects[k]
    text = voice.say("which_image", a=article(thing.color), color=thing.color, shape=thing.shape)
    return [Question("which_image", text, ORDINALS[place], None, (k + 1,), place)]


def _image_color(pair: Pair, voice: Voice) -> list[Question]:
    """Half of the time about a shape that the other scene has in other colours only."""
    place = int(voice.rng.integers(2))
    scene, other = pair[place], pair[1 - place]
    counts = Counter(thing.shape for thing in scene.objects)
    unique = [k for k, thing in enumerate(scene.objects) if counts[thing.shape] == 1]
    colors: dict[str, set[str]] = {}
    for thing in other.objects:
        colors.setdefault(thing.shape, set()).add(thing.color)
    confusing = [
        k for k in unique if scene.objects[k].color not in colors.get(scene.objects[k].shape, {scene.objects[k].color})
    ]
    if not unique:
        return []
    k = voice.pick(confusing if confusing and voice.rng.random() < 0.5 else unique)
    thing = scene.objects[k]
    text = voice.say("image_color", shape=thing.shape, which=ORDINALS[place])
    return [Question("image_color", text, thing.color, None, (k + 1,), place)]


def _image_count(pair: Pair, voice: Voice) -> list[Question]:
    place = int(voice.rng.integers(2))
    text = voice.say("image_count", which=ORDINALS[place])
    regions = tuple(range(1, len(pair[place].objects) + 1))
    return [Question("image_count", text, NUMBERS[len(regions)], None, regions, place)]


_ASKERS: dict[str, Callable[[Pair, Voice], list[Question]]] = {
    "which_image": _which_image,
    "image_color": _image_color,
    "image_count": _image_count,
}
