"""Held-out pictures of every kind with questions about them, and whether what a model said is right.

They come from another random stream than training's; a quarter of the scenes have a held-out photograph behind them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from training.backend import Backend, TextBatch
from training.packing import pack
from training.recipes import TEXT_LENGTH
from training.tokenizer import word_ids
from training.train import verdicts
from vlmprune.assets.asking_pairs import draw_pair
from vlmprune.assets.pages import draw_page
from vlmprune.assets.questions import (
    PAGE_TASKS,
    PAIR_TASKS,
    SCENE_TASKS,
    SCREEN_TASKS,
    Question,
    ask_all,
    ask_page,
    ask_pair,
    ask_screen,
)
from vlmprune.assets.screens import draw_screen
from vlmprune.assets.world import Scene, draw_scene
from vlmprune.scoring.boxes import IOU, extract_box, iou

STREAM = 20_000_003  # no training seed is this large
KINDS = ("scene", "page", "screen", "pair")
BOXES = ("box", "button_box")
_BATCH = 16


@dataclass(frozen=True)
class Case:
    """pictures: one, or two of one size; questions: about them."""

    pictures: tuple[Scene, ...]
    questions: list[Question]


def draw_case(kind: str, index: int, size: tuple[int, int]) -> Case:
    """A test case of one of KINDS: one question (or yes/no pair) of each type that it allows."""
    rng = np.random.default_rng((STREAM, index) if kind == "scene" else (STREAM, index, KINDS.index(kind)))
    if kind == "scene":
        scene = draw_scene(rng, size, photos="held_out")
        return Case((scene,), ask_all(scene, rng, SCENE_TASKS))
    if kind == "page":
        page = draw_page(rng, size)
        return Case((page,), [q for task in PAGE_TASKS for q in ask_page(page, rng, task)])
    if kind == "screen":
        screen = draw_screen(rng, size)
        return Case((screen,), [q for task in SCREEN_TASKS for q in ask_screen(screen, rng, task)])
    pair = draw_pair(rng, size, photos="held_out")
    return Case(pair, [q for task in PAIR_TASKS for q in ask_pair(pair, rng, task)])


def answered(model: torch.nn.Module, backend: Backend, kind: str, count: int) -> Iterator[tuple[Question, bool]]:
    """Every question of `count` cases and whether it was answered right."""
    ids = word_ids(backend)
    for number, size in enumerate(backend.sizes):
        cases = [draw_case(kind, k, size) for k in range(number, count, len(backend.sizes))]
        for start in range(0, len(cases), _BATCH):
            yield from _answered(model, backend, ids, size, cases[start : start + _BATCH])


def _answered(
    model: torch.nn.Module, backend: Backend, ids: dict[str, int], size: tuple[int, int], cases: list[Case]
) -> Iterator[tuple[Question, bool]]:
    pixels = backend.pixels(np.stack([picture.image for case in cases for picture in case.pictures]))
    constants = backend.constants(size, torch.device("cpu"))
    batch, kept = pack([case.questions for case in cases], 2 * TEXT_LENGTH, backend, ids)
    if list(map(len, kept)) != [len(case.questions) for case in cases]:
        raise RuntimeError("Some questions did not fit their row.")
    with torch.no_grad():
        said = backend.forward(model, pixels, constants, batch.ids, batch.segment, batch.offset).logits.argmax(-1)
    words = {identifier: word for word, identifier in ids.items()}
    for row, (questions, right) in enumerate(zip(kept, verdicts(batch, kept, said), strict=True)):
        for number, (question, hit) in enumerate(zip(questions, right, strict=True)):
            yield question, _overlaps(question, batch, said, row, number, words) if question.task in BOXES else hit


def _overlaps(question: Question, batch: TextBatch, said: Tensor, row: int, number: int, words: dict[int, str]) -> bool:
    """Whether a box that was said covers the true one well enough, RefCOCO's rule."""
    where = (batch.segment[row] == number) & (batch.target[row] >= 0)
    found = extract_box(" ".join(words[k] for k in said[row, where].tolist()[:-1]))
    truth = extract_box(question.answer)
    return found is not None and truth is not None and iou(found, truth) >= IOU
