"""Questions about a scene whose answer is looked up: a word or two, a number, a box."""

from __future__ import annotations

from vlmprune.assets.about_scene import CENTER_MARGIN, AboutScene, from_center
from vlmprune.assets.asking import Question, box_words
from vlmprune.assets.wordings import NUMBERS


def count(asker: AboutScene) -> list[Question]:
    number = len(asker.scene.objects)
    return [Question("count", asker.say("count"), NUMBERS[number])] if number < len(NUMBERS) else []


def color(asker: AboutScene) -> list[Question]:
    found = asker.unique("shape")
    if found is None:
        return []
    return [Question("color", asker.say("color", shape=found[1].shape), found[1].color, None, (found[0],))]


def shape(asker: AboutScene) -> list[Question]:
    found = asker.unique("color")
    if found is None:
        return []
    return [Question("shape", asker.say("shape", color=found[1].color), found[1].shape, None, (found[0],))]


def position(asker: AboutScene) -> list[Question]:
    objects = asker.scene.objects
    offsets = [from_center(asker, thing) for thing in objects]
    clear = [k for k, (x, y) in enumerate(offsets) if min(abs(x), abs(y)) >= CENTER_MARGIN]
    found = asker.object_of(clear)
    if found is None:
        return []
    k, thing = found
    x, y = offsets[k - 1]
    answer = f"{'top' if y < 0 else 'bottom'} {'left' if x < 0 else 'right'}"
    return [Question("position", asker.say("position", color=thing.color, shape=thing.shape), answer, None, (k,))]


def size(asker: AboutScene) -> list[Question]:
    found = asker.object_of(range(len(asker.scene.objects)))
    if found is None:
        return []
    k, thing = found
    return [Question("size", asker.say("size", color=thing.color, shape=thing.shape), thing.size, None, (k,))]


def texture(asker: AboutScene) -> list[Question]:
    return [Question("texture", asker.say("texture"), asker.scene.background)]


def ocr(asker: AboutScene) -> list[Question]:
    if asker.scene.plate is None:
        return []
    regions = tuple(r.id for r in asker.scene.regions if r.kind == "digit")
    return [Question("ocr", asker.say("ocr"), " ".join(asker.scene.plate), None, regions)]


def letter(asker: AboutScene) -> list[Question]:
    if asker.scene.letter is None:
        return []
    regions = tuple(r.id for r in asker.scene.regions if r.kind == "letter")
    return [Question("letter", asker.say("letter"), asker.scene.letter, None, regions)]


def box(asker: AboutScene) -> list[Question]:
    found = asker.object_of(range(len(asker.scene.objects)))
    if found is None:
        return []
    k, thing = found
    text = asker.say("box", color=thing.color, shape=thing.shape)
    return [Question("box", text, box_words(thing.box, asker.scene.size), None, (k,))]
