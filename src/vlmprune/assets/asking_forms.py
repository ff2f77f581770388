"""Questions about a scene that ask for a form of answer: multiple choice, and instructions."""

from __future__ import annotations

from collections.abc import Sequence

from vlmprune.assets.about_scene import AboutScene
from vlmprune.assets.asking import Question
from vlmprune.assets.wordings import WORDINGS
from vlmprune.assets.world import COLORS, SHAPES, SIZES, TEXTURES


def mcq(asker: AboutScene) -> list[Question]:
    return _choice(asker, "mcq", asker.pick(("color", "color", "color", "shape", "shape", "size", "texture")))


def mcq_size(asker: AboutScene) -> list[Question]:
    return _choice(asker, "mcq_size", "size")


def _choice(asker: AboutScene, task: str, kind: str) -> list[Question]:
    if kind == "texture":
        options, answer = asker.options(asker.scene.background, TEXTURES)
        return [Question(task, asker.say("mcq_texture", options=options), answer)]
    if kind == "size":
        found = asker.object_of(range(len(asker.scene.objects)))
    else:
        found = asker.unique("shape" if kind == "color" else "color")
    if found is None:
        return []
    k, thing = found
    values: dict[str, Sequence[str]] = {"color": tuple(COLORS), "shape": SHAPES, "size": tuple(SIZES)}
    options, answer = asker.options(getattr(thing, kind), values[kind])
    text = asker.say(f"mcq_{kind}", color=thing.color, shape=thing.shape, options=options)
    return [Question(task, text, answer, None, (k,))]


def option(asker: AboutScene) -> list[Question]:
    values = (tuple(COLORS), tuple(COLORS), SHAPES, tuple(SIZES), TEXTURES)[int(asker.rng.integers(5))]
    value = asker.pick(values)
    options, answer = asker.options(value, values)
    return [Question("option", asker.say("option", value=value, options=options), answer)]


def instruct(asker: AboutScene) -> list[Question]:
    name = "color" if asker.rng.random() < 0.5 else "shape"  # what the answer must find
    found = asker.unique("shape" if name == "color" else "color")
    if found is None:
        return []
    k, thing = found
    form = asker.pick(("twice", "form", "sentence", "color_shape", "shape_color"))
    value, referent = (thing.color, thing.shape) if name == "color" else (thing.shape, f"{thing.color} object")
    lookup = WORDINGS[name][0].format(color=thing.color, shape=thing.shape)
    answer = {
        "twice": f"{value} {value}",
        "form": f"{name} = {value}",
        "sentence": f"the {referent} is {'a ' if name == 'shape' else ''}{value}",
        "color_shape": f"{thing.color} {thing.shape}",
        "shape_color": f"{thing.shape} {thing.color}",
    }[form]
    text = asker.say(form, lookup=lookup, name=name, referent=referent)
    return [Question("instruct", text, answer, None, (k,))]
