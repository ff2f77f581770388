"""Training batches: scenes, packed questions and patch labels, all from one seed a step."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from training.backend import Backend, TextBatch
from training.tokenizer import encode
from vlmprune.assets.questions import MARKERS, Asker, Question
from vlmprune.assets.screens import Screen
from vlmprune.assets.world import COLORS, DIGITS, LETTERS, SHAPES, SIZES, TEXTURES, Region, Scene

CHARACTERS = DIGITS + LETTERS
NUMBER = 4  # digits of the longest number
RANKS = 8  # objects of the fullest scene
_COVERAGE = 0.1  # a slot is an object's when at least this share of its pixels shows it
_INDEX = {
    name: {value: k + 1 for k, value in enumerate(values)}
    for name, values in (
        ("shape", SHAPES),
        ("color", tuple(COLORS)),
        ("size", tuple(SIZES)),
        ("char", CHARACTERS),
    )
}


@dataclass(frozen=True)
class Labels:
    """What each slot shows; 0 is "none" in shape, color, size, char, order and rank.

    shape, color, size, char: int64 [B, slots]; order: int64 [B, slots], 1 on the plate's first digit, 2 on the second;
    rank: int64 [B, slots], 1 on the object whose top is highest, 2 on the next;
    number: int64 [B, slots, 4], on the digits of a number and the letter of its entry all its digits, each
    plus 1, 0 behind the last; -100 elsewhere;
    texture: int64 [B]; row, column: int64 [slots], their count along each axis in rows, columns;
    present: float32 [B, kinds], what the whole image holds.
    """

    shape: Tensor
    color: Tensor
    size: Tensor
    char: Tensor
    order: Tensor
    rank: Tensor
    number: Tensor
    texture: Tensor
    row: Tensor
    column: Tensor
    present: Tensor

    def to(self, device: torch.device) -> Labels:
        return Labels(*(getattr(self, field.name).to(device) for field in fields(self)))


def slot_regions(masks: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """The region that covers most of each slot, [rows * columns], 0 where none covers enough.

    Args:
        masks: uint8 [H, W] ids, H and W multiples of rows and columns.
    """
    height, width = masks.shape
    most = int(masks.max()) + 1
    slot = (np.arange(height) // (height // rows))[:, None] * columns + np.arange(width) // (width // columns)
    counts = np.bincount((slot * most + masks).ravel(), minlength=rows * columns * most).reshape(-1, most)
    counts[:, 0] = _COVERAGE * (height // rows) * (width // columns)
    return counts.argmax(axis=1)


def make_labels(scenes: list[Scene], rows: int, columns: int) -> Labels:
    """Labels of scenes of one size."""
    tables: dict[str, list[np.ndarray]] = {name: [] for name in (*_INDEX, "order", "rank")}
    numbers = []
    present = np.zeros((len(scenes), len(SHAPES) + len(COLORS) + len(LETTERS) + len(TEXTURES)), np.float32)
    for b, scene in enumerate(scenes):
        lookup = {name: np.zeros(len(scene.regions) + 1, np.int64) for name in tables}
        seen = [len(SHAPES) + len(COLORS) + len(LETTERS) + TEXTURES.index(scene.background)]
        for region in scene.regions:
            if region.kind == "object":
                thing = scene.objects[region.id - 1]
                for name in ("shape", "color", "size"):
                    lookup[name][region.id] = _INDEX[name][getattr(thing, name)]
                lookup["rank"][region.id] = 1 + sum(
                    (other.box[1], other.box[0]) < (thing.box[1], thing.box[0]) for other in scene.objects
                )
                seen += [lookup["shape"][region.id] - 1, len(SHAPES) + lookup["color"][region.id] - 1]
            else:
                lookup["char"][region.id] = _INDEX["char"][region.name]
                if region.kind == "letter":
                    seen.append(len(SHAPES) + len(COLORS) + LETTERS.index(region.name))
        for region in scene.regions:
            lookup["order"][region.id] = region.place
        present[b, seen] = 1
        slots = slot_regions(scene.masks, rows, columns)
        for name in tables:
            tables[name].append(lookup[name][slots])
        numbers.append(_number_of(scene)[slots])
    place = torch.arange(rows * columns)
    return Labels(
        **{name: torch.from_numpy(np.stack(table)) for name, table in tables.items()},
        number=torch.from_numpy(np.stack(numbers)),
        texture=torch.tensor([TEXTURES.index(scene.background) for scene in scenes]),
        row=place // columns,
        column=place % columns,
        present=torch.from_numpy(present),
    )


def _number_of(scene: Scene) -> np.ndarray:
    """[regions + 1, 4] what `Labels.number` says of each region."""
    table = np.full((len(scene.regions) + 1, NUMBER), -100, np.int64)
    groups: list[list[Region]] = []
    for region in scene.regions:
        if region.place > 1 or (region.place == 1 and groups and groups[-1][-1].kind == "letter"):
            groups[-1].append(region)
        else:
            groups.append([region])
    for group in groups:
        digits = [int(region.name) + 1 for region in group if region.kind == "digit"]
        if digits:
            table[[region.id for region in group]] = digits + [0] * (NUMBER - len(digits))
    return table


def pack(
    rows: list[list[Question]],
    length: int,
    backend: Backend,
    ids: dict[str, int],
    scenes: list[Scene] | None = None,
    grid: tuple[int, int] = (1, 1),
) -> tuple[TextBatch, list[list[Question]]]:
    """Pack the questions of each image into a row of `length` tokens; questions that do not fit are left out.

    Args:
        rows: the questions of each image.
        length: tokens in a row.
        ids: token ids.
        scenes, grid: the scenes and their rows and columns of slots, for `TextBatch.hint`; without scenes no hints.

    Returns:
        The batch, and the questions that are in it, in order of their segment numbers.
    """
    shape = (len(rows), length)
    tokens, segment = np.full(shape, ids[backend.specials[0]]), np.full(shape, -1)
    offset, target = np.zeros(shape, np.int64), np.full(shape, -100)
    hint = np.full((*shape, 7), -100)
    kept: list[list[Question]] = []
    for b, questions in enumerate(rows):
        at = 0
        names = _Names(scenes[b], grid) if scenes else None
        inside: list[Question] = []
        for question in questions:
            asked = [*encode(question.text, ids), ids[backend.assistant]]
            whole = [*asked, *encode(question.answer, ids), ids[backend.end]]
            stop = at + len(whole) - 1  # the end token is only ever a target
            if stop > length:
                continue
            tokens[b, at:stop] = whole[:-1]
            segment[b, at:stop] = len(inside)
            offset[b, at:stop] = np.arange(stop - at)
            target[b, at + len(asked) - 1 : stop] = whole[len(asked) :]
            if names:
                for k, values in enumerate(names.hints(question)):
                    hint[b, at + k] = values
            inside.append(question)
            at = stop
        kept.append(inside)
    batch = TextBatch(*(torch.from_numpy(part.astype(np.int64)) for part in (tokens, segment, offset, target, hint)))
    return batch, kept


class _Names:
    """Which words of a question name one object (or letter) of a scene, and what there is to know about it."""

    def __init__(self, scene: Scene, grid: tuple[int, int]) -> None:
        self.facts: dict[str | tuple[str, str], tuple[int, ...]] = {}
        counts = Counter(word for thing in scene.objects for word in (thing.shape, thing.color))
        width, height = scene.size
        for thing in scene.objects:
            row, column = int(thing.center[1] * grid[0] / height), int(thing.center[0] * grid[1] / width)
            kinds = tuple(_INDEX[kind][getattr(thing, kind)] - 1 for kind in ("shape", "color", "size"))
            fact = (*kinds, row, column)
            self.facts[thing.color, thing.shape] = fact
            self.facts |= {word: fact for word in (thing.shape, thing.color) if counts[word] == 1}
        letters = [region for region in scene.regions if region.kind == "letter"]
        colors = {button.letter: button.color for button in scene.buttons} if isinstance(scene, Screen) else {}
        for region in letters:
            if [other.name for other in letters].count(region.name) == 1:
                rows, columns = np.nonzero(scene.masks == region.id)
                row, column = int(rows.mean() * grid[0] / height), int(columns.mean() * grid[1] / width)
                color = list(COLORS).index(colors[region.name]) if region.name in colors else -100
                self.facts[region.name] = (-100, color, -100, row, column)

    def hints(self, question: Question) -> list[tuple[int, ...]]:
        """The facts that each word of a question should bring, see `TextBatch.hint`; "red star" names at "star"."""
        words = question.text.split()
        found = []
        for word, before in zip(words, ["", *words], strict=False):
            pair = (before, word) if word in SHAPES and before in COLORS else None
            option = (MARKERS.index(before), int(before == question.answer)) if before in MARKERS else (-100, -100)
            found.append((*self.facts.get(pair or word, (-100,) * 5), *option))
        return found


def draw_questions(
    scene: Scene,
    rng: np.random.Generator,
    mix: dict[str, float],
    *,
    first_wording_share: float,
    two_option_share: float,
) -> list[Question]:
    """Questions about a scene in random order.

    Args:
        mix: expected number of draws of each task type.
    """
    asker = Asker(scene, rng, first_wording_share, two_option_share)
    drawn: list[list[Question]] = []
    for task, expected in mix.items():
        for _ in range(int(expected + rng.random())):
            drawn.append(asker.ask(task))
    order = rng.permutation(len(drawn))
    return [question for k in order for question in drawn[int(k)]]
