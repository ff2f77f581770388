"""Yes/no questions about a scene."""

from __future__ import annotations

from vlmprune.assets.about_scene import CENTER_MARGIN, AboutScene, from_center, name_of, relation_of
from vlmprune.assets.asking import Question, article
from vlmprune.assets.wordings import NUMBERS, RELATIONS
from vlmprune.assets.world import COLORS, SHAPES

_SPATIAL_MARGIN = 10.0  # pixels between two centres along the asked axis


def exist(asker: AboutScene) -> list[Question]:
    rng, objects = asker.rng, asker.scene.objects
    present = {(o.color, o.shape) for o in objects}
    regions: tuple[int, ...] = ()
    if rng.random() < 0.5 and objects:
        k = int(rng.integers(len(objects)))
        color, shape, answer, regions = objects[k].color, objects[k].shape, "yes", (k + 1,)
    else:
        absent = [
            (c, s)
            for c in sorted({o.color for o in objects})
            for s in sorted({o.shape for o in objects})
            if (c, s) not in present
        ]
        if not absent or rng.random() < 0.5:
            absent = [(c, s) for c in COLORS for s in SHAPES if (c, s) not in present]
        color, shape = absent[int(rng.integers(len(absent)))]
        answer = "no"
    text = asker.say("exist", a=article(color), color=color, shape=shape)
    return [Question("exist", text, answer, None, regions)]


def attr_yn(asker: AboutScene) -> list[Question]:
    found = asker.unique("shape")
    if found is None:
        return []
    k, thing = found
    near = sorted({o.color for o in asker.scene.objects} - {thing.color})
    wrong = near if near and asker.rng.random() < 0.5 else [c for c in COLORS if c != thing.color]
    true = asker.say("attr_yn", shape=thing.shape, color=thing.color)
    false = asker.say("attr_yn", shape=thing.shape, color=asker.pick(wrong))
    return asker.pair_of("attr_yn", true, false, (k,))


def spatial(asker: AboutScene) -> list[Question]:
    objects = asker.scene.objects
    if len(objects) < 2:
        return []
    i, j = (int(k) for k in asker.rng.permutation(len(objects))[:2])
    first, second = objects[i], objects[j]
    dx, dy = first.center[0] - second.center[0], first.center[1] - second.center[1]
    relation = relation_of(asker, dx, dy, _SPATIAL_MARGIN)
    if relation is None:
        return []
    words = asker.pick(RELATIONS[relation[0]])
    true = asker.say("spatial", first=name_of(first), relation=words, second=name_of(second))
    false = asker.say("spatial", first=name_of(second), relation=words, second=name_of(first))
    return asker.pair_of("spatial", true, false, (i + 1, j + 1))


def side(asker: AboutScene) -> list[Question]:
    found = asker.object_of(range(len(asker.scene.objects)))
    if found is None:
        return []
    k, thing = found
    relation = relation_of(asker, *from_center(asker, thing), CENTER_MARGIN)
    if relation is None:
        return []
    true, false = (
        asker.say("side", first=name_of(thing), relation=asker.pick(RELATIONS[side]), second="center")
        for side in relation
    )
    return asker.pair_of("side", true, false, (k,))


def compare(asker: AboutScene) -> list[Question]:
    rng, number = asker.rng, len(asker.scene.objects)
    if not 0 < number < len(NUMBERS):
        return []
    more, yes = rng.random() < 0.5, rng.random() < 0.5
    if more:
        low, high, near = (0, number - 1, number - 1) if yes else (number, 6, number)
    else:
        low, high, near = (number + 1, 6, number + 1) if yes else (0, number, number)
    if low > high:
        return []
    threshold = near if rng.random() < 0.5 else int(rng.integers(low, high + 1))
    text = asker.say("more" if more else "fewer", number=NUMBERS[threshold])
    return [Question("compare", text, "yes" if yes else "no")]
