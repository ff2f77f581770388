"""Questions about generated scenes, with their answers, in several wordings per task type.

Fourteen task types, each after a benchmark that it mimics, grouped into the six tasks of `BENCHMARK_TASKS`:

- `exist`: "is there a red star ?"; half of the negatives recombine a colour and a shape that are there (POPE).
- `attr_yn`, `spatial`: yes/no pairs, one question of a pair is true and its partner false (MME).
- `count`, `compare`: the number of objects, and a comparison of it with a number.
- `mcq`: four options "(a)" to "(d)" for a colour, a shape, a size or the background (ScienceQA, MMBench).
- `ocr`, `letter`: the digits on the plate, the single letter.
- `color`, `shape`, `position`, `size`, `texture`: lookups that ask for a word or two.
- `instruct`: an answer in the asked form ("answer twice .", "answer in the form color = value .").

`TRAINING_TASKS` holds simpler or rarer questions that only training asks.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from vlmprune.assets.world import COLORS, DIGITS, LETTERS, SHAPES, SIZES, TEXTURES, Scene, SceneObject

BENCHMARK_TASKS: dict[str, tuple[str, ...]] = {
    "synth-mme": ("attr_yn", "spatial"),
    "synth-ocr": ("ocr", "letter"),
    "synth-math": ("count", "compare"),
    "synth-choice": ("mcq",),
    "synth-pope": ("exist",),
    "synth-instruct": ("instruct", "color", "shape", "position", "size", "texture"),
}
TASKS: tuple[str, ...] = tuple(task for tasks in BENCHMARK_TASKS.values() for task in tasks)
TRAINING_TASKS: tuple[str, ...] = ("option", "side", "mcq_size")
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six")
MARKERS = ("(a)", "(b)", "(c)", "(d)")
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
}

# Word pattern of the tokenizer: an option marker, a run of letters, one digit, or one other sign.
WORD_PATTERN = r"\([a-d]\)|[a-z]+|[0-9]|[^a-z0-9\s]"

_SPATIAL_MARGIN = 10.0  # pixels between two centres along the asked axis
_CENTER_MARGIN = 6.0  # pixels between a centre and the image's middle line

_WORDINGS: dict[str, tuple[str, ...]] = {
    "exist": (
        "is there {a} {color} {shape} ?",
        "does the image contain {a} {color} {shape} ?",
        "can you see {a} {color} {shape} ?",
        "is {a} {color} {shape} in the picture ?",
    ),
    "attr_yn": (
        "is the {shape} {color} ?",
        "is the color of the {shape} {color} ?",
        "does the {shape} have the color {color} ?",
        "is it true that the {shape} is {color} ?",
    ),
    "spatial": (
        "is the {first} {relation} the {second} ?",
        "does the {first} lie {relation} the {second} ?",
        "is it true that the {first} is {relation} the {second} ?",
    ),
    "side": (
        "is the {first} {relation} the {second} ?",
        "does the {first} lie {relation} the {second} ?",
        "is it true that the {first} is {relation} the {second} ?",
    ),
    "count": (
        "how many objects are there ?",
        "how many objects can you see ?",
        "count the objects .",
        "what is the number of objects ?",
    ),
    "more": ("are there more than {number} objects ?", "is the number of objects greater than {number} ?"),
    "fewer": ("are there fewer than {number} objects ?", "is the number of objects less than {number} ?"),
    "color": (
        "what color is the {shape} ?",
        "which color does the {shape} have ?",
        "what is the color of the {shape} ?",
        "name the color of the {shape} in one word .",
    ),
    "shape": (
        "what shape is the {color} object ?",
        "which shape does the {color} object have ?",
        "what is the shape of the {color} object ?",
        "name the shape of the {color} object in one word .",
    ),
    "position": (
        "where is the {color} {shape} ?",
        "in which part of the image is the {color} {shape} ?",
        "what is the position of the {color} {shape} ?",
        "name the position of the {color} {shape} in two words .",
    ),
    "size": (
        "what size is the {color} {shape} ?",
        "how big is the {color} {shape} ?",
        "what is the size of the {color} {shape} ?",
        "name the size of the {color} {shape} in one word .",
    ),
    "texture": (
        "what is the background ?",
        "which background does the image have ?",
        "what is behind the objects ?",
        "name the background in one word .",
    ),
    "ocr": (
        "what number is on the plate ?",
        "read the number .",
        "which number does the plate have ?",
        "name the number on the plate .",
    ),
    "letter": (
        "which letter is there ?",
        "what letter can you see ?",
        "read the letter .",
        "name the letter in the image .",
    ),
    "option": ("which option is {value} ? {options}",),
    "mcq_color": ("what color is the {shape} ? {options}", "choose the color of the {shape} : {options}"),
    "mcq_shape": (
        "what shape is the {color} object ? {options}",
        "choose the shape of the {color} object : {options}",
    ),
    "mcq_size": (
        "what size is the {color} {shape} ? {options}",
        "choose the size of the {color} {shape} : {options}",
    ),
    "mcq_texture": ("what is the background ? {options}", "choose the background : {options}"),
    "twice": ("{lookup} answer twice .", "{lookup} answer two times ."),
    "form": ("{lookup} answer in the form {name} = value .", "{lookup} answer as {name} = value ."),
    "sentence": ("{lookup} answer in a sentence .", "{lookup} answer with a sentence ."),
    "color_shape": (
        "describe the {referent} as color then shape .",
        "name color then shape of the {referent} .",
    ),
    "shape_color": (
        "describe the {referent} as shape then color .",
        "name shape then color of the {referent} .",
    ),
}
_RELATIONS: dict[str, tuple[str, ...]] = {
    "left": ("left of", "to the left of"),
    "right": ("right of", "to the right of"),
    "above": ("above",),
    "below": ("below",),
}


@dataclass(frozen=True)
class Question:
    """One question.

    Attributes:
        task: its task type.
        text: lower-case words and signs, separated by spaces.
        answer: the only right answer, written like `text` (digits apart: "4 0 7").
        pair: the same number for the two questions of a yes/no pair of one scene, else None.
        regions: ids in `Scene.masks` that the question is about; empty for the whole image.
    """

    task: str
    text: str
    answer: str
    pair: int | None = None
    regions: tuple[int, ...] = ()


@dataclass
class Asker:
    """Asks about one scene.

    Attributes:
        scene: the scene.
        rng: the only source of randomness.
        first_wording_share: share of questions in a task's first wording; the rest draw from all wordings.
        two_option_share: share of multiple-choice questions with two options instead of four.
    """

    scene: Scene
    rng: np.random.Generator
    first_wording_share: float = 0.0
    two_option_share: float = 0.0
    pairs: int = 0

    def ask(self, task: str) -> list[Question]:
        """Questions of a task type: two for a pair, none when the scene does not allow any."""
        return _ASKERS[task](self)

    def say(self, key: str, **slots: str) -> str:
        """A wording with its slots filled."""
        wordings = _WORDINGS[key]
        first = self.first_wording_share and self.rng.random() < self.first_wording_share
        return wordings[0 if first else int(self.rng.integers(len(wordings)))].format(**slots)

    def pick(self, items: Sequence[str]) -> str:
        return items[int(self.rng.integers(len(items)))]

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


def ask_all(scene: Scene, rng: np.random.Generator, tasks: Sequence[str] = TASKS) -> list[Question]:
    """One question (or pair) of each task type that the scene allows, in mixed wordings."""
    asker = Asker(scene, rng)
    return [question for task in tasks for question in asker.ask(task)]


def _article(color: str) -> str:
    return "an" if color[0] in "aeiou" else "a"


def _exist(asker: Asker) -> list[Question]:
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
    text = asker.say("exist", a=_article(color), color=color, shape=shape)
    return [Question("exist", text, answer, None, regions)]


def _attr_yn(asker: Asker) -> list[Question]:
    found = asker.unique("shape")
    if found is None:
        return []
    k, thing = found
    near = sorted({o.color for o in asker.scene.objects} - {thing.color})
    wrong = near if near and asker.rng.random() < 0.5 else [c for c in COLORS if c != thing.color]
    true = asker.say("attr_yn", shape=thing.shape, color=thing.color)
    false = asker.say("attr_yn", shape=thing.shape, color=asker.pick(wrong))
    return asker.pair_of("attr_yn", true, false, (k,))


def _name(thing: SceneObject) -> str:
    return f"{thing.color} {thing.shape}"


def _relation(asker: Asker, dx: float, dy: float, margin: float) -> tuple[str, str] | None:
    """A relation that holds for an offset of (dx, dy) pixels, and its opposite."""
    true = [("left", "right") if dx < 0 else ("right", "left")] if abs(dx) >= margin else []
    true += [("above", "below") if dy < 0 else ("below", "above")] if abs(dy) >= margin else []
    return true[int(asker.rng.integers(len(true)))] if true else None


def _spatial(asker: Asker) -> list[Question]:
    objects = asker.scene.objects
    if len(objects) < 2:
        return []
    i, j = (int(k) for k in asker.rng.permutation(len(objects))[:2])
    first, second = objects[i], objects[j]
    dx, dy = first.center[0] - second.center[0], first.center[1] - second.center[1]
    relation = _relation(asker, dx, dy, _SPATIAL_MARGIN)
    if relation is None:
        return []
    words = asker.pick(_RELATIONS[relation[0]])
    true = asker.say("spatial", first=_name(first), relation=words, second=_name(second))
    false = asker.say("spatial", first=_name(second), relation=words, second=_name(first))
    return asker.pair_of("spatial", true, false, (i + 1, j + 1))


def _from_center(asker: Asker, thing: SceneObject) -> tuple[float, float]:
    width, height = asker.scene.size
    return thing.center[0] - width / 2, thing.center[1] - height / 2


def _side(asker: Asker) -> list[Question]:
    found = asker.object_of(range(len(asker.scene.objects)))
    if found is None:
        return []
    k, thing = found
    relation = _relation(asker, *_from_center(asker, thing), _CENTER_MARGIN)
    if relation is None:
        return []
    true, false = (
        asker.say("side", first=_name(thing), relation=asker.pick(_RELATIONS[side]), second="center")
        for side in relation
    )
    return asker.pair_of("side", true, false, (k,))


def _count(asker: Asker) -> list[Question]:
    number = len(asker.scene.objects)
    return [Question("count", asker.say("count"), NUMBERS[number])] if number < len(NUMBERS) else []


def _compare(asker: Asker) -> list[Question]:
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


def _color(asker: Asker) -> list[Question]:
    found = asker.unique("shape")
    if found is None:
        return []
    return [Question("color", asker.say("color", shape=found[1].shape), found[1].color, None, (found[0],))]


def _shape(asker: Asker) -> list[Question]:
    found = asker.unique("color")
    if found is None:
        return []
    return [Question("shape", asker.say("shape", color=found[1].color), found[1].shape, None, (found[0],))]


def _position(asker: Asker) -> list[Question]:
    objects = asker.scene.objects
    offsets = [_from_center(asker, thing) for thing in objects]
    clear = [k for k, (x, y) in enumerate(offsets) if min(abs(x), abs(y)) >= _CENTER_MARGIN]
    found = asker.object_of(clear)
    if found is None:
        return []
    k, thing = found
    x, y = offsets[k - 1]
    answer = f"{'top' if y < 0 else 'bottom'} {'left' if x < 0 else 'right'}"
    return [Question("position", asker.say("position", color=thing.color, shape=thing.shape), answer, None, (k,))]


def _size(asker: Asker) -> list[Question]:
    found = asker.object_of(range(len(asker.scene.objects)))
    if found is None:
        return []
    k, thing = found
    return [Question("size", asker.say("size", color=thing.color, shape=thing.shape), thing.size, None, (k,))]


def _texture(asker: Asker) -> list[Question]:
    return [Question("texture", asker.say("texture"), asker.scene.background)]


def _ocr(asker: Asker) -> list[Question]:
    if asker.scene.plate is None:
        return []
    regions = tuple(r.id for r in asker.scene.regions if r.kind == "digit")
    return [Question("ocr", asker.say("ocr"), " ".join(asker.scene.plate), None, regions)]


def _letter(asker: Asker) -> list[Question]:
    if asker.scene.letter is None:
        return []
    regions = tuple(r.id for r in asker.scene.regions if r.kind == "letter")
    return [Question("letter", asker.say("letter"), asker.scene.letter, None, regions)]


def _mcq(asker: Asker) -> list[Question]:
    return _choice(asker, "mcq", asker.pick(("color", "color", "color", "shape", "shape", "size", "texture")))


def _mcq_size(asker: Asker) -> list[Question]:
    return _choice(asker, "mcq_size", "size")


def _choice(asker: Asker, task: str, kind: str) -> list[Question]:
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


def _option(asker: Asker) -> list[Question]:
    values = (tuple(COLORS), tuple(COLORS), SHAPES, tuple(SIZES), TEXTURES)[int(asker.rng.integers(5))]
    value = asker.pick(values)
    options, answer = asker.options(value, values)
    return [Question("option", asker.say("option", value=value, options=options), answer)]


def _instruct(asker: Asker) -> list[Question]:
    name = "color" if asker.rng.random() < 0.5 else "shape"  # what the answer must find
    found = asker.unique("shape" if name == "color" else "color")
    if found is None:
        return []
    k, thing = found
    form = asker.pick(("twice", "form", "sentence", "color_shape", "shape_color"))
    value, referent = (thing.color, thing.shape) if name == "color" else (thing.shape, f"{thing.color} object")
    lookup = _WORDINGS[name][0].format(color=thing.color, shape=thing.shape)
    answer = {
        "twice": f"{value} {value}",
        "form": f"{name} = {value}",
        "sentence": f"the {referent} is {'a ' if name == 'shape' else ''}{value}",
        "color_shape": f"{thing.color} {thing.shape}",
        "shape_color": f"{thing.shape} {thing.color}",
    }[form]
    text = asker.say(form, lookup=lookup, name=name, referent=referent)
    return [Question("instruct", text, answer, None, (k,))]


_ASKERS: dict[str, Callable[[Asker], list[Question]]] = {
    "exist": _exist,
    "attr_yn": _attr_yn,
    "spatial": _spatial,
    "side": _side,
    "count": _count,
    "compare": _compare,
    "color": _color,
    "shape": _shape,
    "position": _position,
    "size": _size,
    "texture": _texture,
    "ocr": _ocr,
    "letter": _letter,
    "mcq": _mcq,
    "mcq_size": _mcq_size,
    "option": _option,
    "instruct": _instruct,
}


@cache
def vocabulary() -> tuple[str, ...]:
    """Every word that a question or an answer may hold, in a fixed order."""
    texts = [wording for wordings in _WORDINGS.values() for wording in wordings]
    texts = [re.sub(r"\{\w+\}", " ", text) for text in texts]
    texts += [words for relation in _RELATIONS.values() for words in relation]
    texts += ["yes no a an object the is center top bottom left right above below"]
    texts += [*COLORS, *SHAPES, *SIZES, *TEXTURES, *NUMBERS, *DIGITS, *LETTERS, *MARKERS]
    return tuple(sorted({word for text in texts for word in split_words(text)}))


def split_words(text: str) -> list[str]:
    """The words of a text, as the embedded models' tokenizer splits them."""
    return re.findall(WORD_PATTERN, text.lower())


def normalise_answer(text: str) -> str:
    """A reply in the form of `Question.answer`: lower-case words, digits apart, no stop at its end."""
    return " ".join(split_words(text.strip().rstrip("."))).strip()
