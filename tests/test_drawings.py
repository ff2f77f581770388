"""Generated pages, screenshots, pairs of scenes and clips, and the questions about them."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from vlmprune.assets.asking_pages import entries
from vlmprune.assets.asking_pairs import draw_pair
from vlmprune.assets.clips import DIRECTIONS, Clip, draw_clip
from vlmprune.assets.pages import draw_page
from vlmprune.assets.questions import (
    CLIP_TASKS,
    PAGE_TASKS,
    PAIR_TASKS,
    SCREEN_TASKS,
    Asker,
    Question,
    ask_clip,
    ask_page,
    ask_pair,
    ask_screen,
    normalise_answer,
    split_words,
    vocabulary,
)
from vlmprune.assets.screens import draw_screen
from vlmprune.assets.wordings import NUMBERS, ORDINALS
from vlmprune.assets.world import COLORS, draw_scene
from vlmprune.scoring.boxes import extract_box, iou

MANY = 60
SIZES = ((112, 112), (120, 120), (160, 90), (90, 160), (64, 64))
KINDS: dict[str, tuple[Callable[..., Any], Callable[..., list[Question]], tuple[str, ...]]] = {
    "page": (draw_page, ask_page, PAGE_TASKS),
    "screen": (draw_screen, ask_screen, SCREEN_TASKS),
    "pair": (draw_pair, ask_pair, PAIR_TASKS),
    "clip": (draw_clip, ask_clip, CLIP_TASKS),
}


def asked(kind: str, seed: int = 0, size: tuple[int, int] | None = None) -> list[tuple[Any, Question]]:
    """Drawings of a kind, with every question that they allow."""
    rng = np.random.default_rng(seed)
    draw, ask, tasks = KINDS[kind]
    drawn = [draw(rng, size or SIZES[number % len(SIZES)]) for number in range(MANY)]
    return [(one, question) for one in drawn for task in tasks for question in ask(one, rng, task)]


@pytest.mark.parametrize("kind", KINDS)
def test_questions_are_normal_in_several_wordings_and_inside_the_vocabulary(kind: str) -> None:
    words, texts = set(vocabulary()), Counter[tuple[str, str]]()
    found = asked(kind)
    for _, question in found:
        assert set(split_words(f"{question.text} {question.answer}")) <= words
        assert " ".join(split_words(question.text)) == question.text
        assert normalise_answer(question.answer) == question.answer
        texts[question.task, " ".join(question.text.split()[:2])] += 1
    assert {question.task for _, question in found} == set(KINDS[kind][2])
    assert all(sum(task == name for name, _ in texts) >= 2 for task in KINDS[kind][2])


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_gives_the_same_drawing_and_no_side_may_be_too_small(kind: str) -> None:
    first, second = asked(kind, seed=3), asked(kind, seed=3)
    assert [question for _, question in first] == [question for _, question in second]
    with pytest.raises(ValueError, match="at least 64 pixels"):
        KINDS[kind][0](np.random.default_rng(0), (112, 63))


@pytest.mark.parametrize("draw", [draw_page, draw_screen])
@pytest.mark.parametrize("size", SIZES)
def test_glyphs_are_marked_where_their_ink_is(draw: Callable[..., Any], size: tuple[int, int]) -> None:
    rng = np.random.default_rng(1)
    for _ in range(20):
        scene = draw(rng, size)
        assert scene.size == size and scene.image.shape == (size[1], size[0], 3)
        assert [region.id for region in scene.regions] == list(range(1, len(scene.regions) + 1))
        assert set(np.unique(scene.masks)) - {0} == {region.id for region in scene.regions}
        for region in scene.regions:
            inside = scene.image[scene.masks == region.id].astype(float)
            assert np.ptp(inside.mean(axis=1)) > 60, "no ink in the glyph's box"
            assert (region.place > 0) == (region.kind == "digit")


def test_letters_and_numbers_of_a_page_differ() -> None:
    counts = Counter[int]()
    for page in {id(page): page for page, _ in asked("page")}.values():
        lines = entries(page)
        letters = [line[0].name for line in lines]
        numbers = ["".join(digit.name for digit in line[1:]) for line in lines]
        assert len(set(letters)) == len(letters) == len(set(numbers))
        assert all(len(number) in (2, 3) for number in numbers)
        assert all([digit.place for digit in line[1:]] == list(range(1, len(line))) for line in lines)
        counts[len(lines)] += 1
    assert min(counts) >= 2 and max(counts) >= 8


def test_answers_about_pages_are_true() -> None:
    for page, question in asked("page", 5):
        names = [page.regions[k - 1].name for k in question.regions]
        letter, number = names[0], " ".join(names[1:])
        if question.task == "entry":
            assert letter in question.text.split() and question.answer == number
        else:
            assert number in question.text and question.answer == letter


def test_answers_about_screens_are_true() -> None:
    for screen, question in asked("screen", 6):
        (button,) = (one for one in screen.buttons if (one.region,) == question.regions)
        assert 3 <= len(screen.buttons) <= 6 and screen.regions[button.region - 1].name == button.letter
        left, top, right, bottom = button.box
        seen = np.median(screen.image[top + 2 : bottom - 2, left + 2 : right - 2].reshape(-1, 3).astype(float), axis=0)
        assert np.abs(seen - COLORS[button.color]).max() <= 20
        if question.task == "button_color":
            assert button.letter in question.text.split() and question.answer == button.color
        elif question.task == "button_letter":
            assert button.color in question.text and question.answer == button.letter
            assert [one.color for one in screen.buttons].count(button.color) == 1
        else:
            assert overlap(question.answer, button.box, screen.size) > 0.85


def overlap(answer: str, box: tuple[int, int, int, int], size: tuple[int, int]) -> float:
    edges = extract_box(answer)
    assert edges is not None
    left, top, right, bottom = (100 * edge / side for edge, side in zip(box, (*size, *size), strict=True))
    return iou(edges, (left, top, right, bottom))


def test_a_box_is_the_object_s() -> None:
    rng = np.random.default_rng(2)
    for _ in range(MANY):
        scene = draw_scene(rng, (160, 90))
        for question in Asker(scene, rng).ask("box"):
            thing = scene.objects[question.regions[0] - 1]
            assert f"{thing.color} {thing.shape}" in question.text
            assert overlap(question.answer, thing.box, scene.size) > 0.85


def test_answers_about_two_images_are_true() -> None:
    confused = Counter[bool]()
    for pair, question in asked("pair", 7):
        scene, other = pair[question.picture], pair[1 - question.picture]
        things = [scene.objects[k - 1] for k in question.regions]
        words = question.text.split()
        if question.task == "which_image":
            assert question.answer == ORDINALS[question.picture]
            assert {things[0].color, things[0].shape} <= set(words)
            assert (things[0].color, things[0].shape) not in {(o.color, o.shape) for o in other.objects}
        elif question.task == "image_color":
            assert ORDINALS[question.picture] in words and things[0].shape in words
            assert question.answer == things[0].color
            assert [o.shape for o in scene.objects].count(things[0].shape) == 1
            confused[things[0].shape in {o.shape for o in other.objects}] += 1
        else:
            assert ORDINALS[question.picture] in words and question.answer == NUMBERS[len(scene.objects)]
    assert confused[True] > 0.3 * confused.total()


def test_clips_show_what_their_objects_say() -> None:
    for clip in {id(clip): clip for clip, _ in asked("clip", 8)}.values():
        frames = len(clip.frames)
        assert clip.frames.shape == (*clip.masks.shape, 3) and clip.frames.dtype == clip.masks.dtype == np.uint8
        assert 1 <= len(clip.objects) <= 3 and len({o.shape for o in clip.objects}) == len(clip.objects)
        for number, thing in enumerate(clip.objects, start=1):
            for t in range(frames):
                rows, columns = np.nonzero(clip.masks[t] == number)
                if thing.boxes[t] is None:
                    assert not len(rows) and t < thing.frame
                    continue
                left, top, right, bottom = thing.boxes[t]
                assert left <= columns.min() and columns.max() < right and top <= rows.min() and rows.max() < bottom
                seen = np.median(clip.frames[t][rows, columns].astype(float), axis=0)
                assert np.abs(seen - COLORS[thing.colors[t]]).max() <= 20
        shown = [t for t in range(frames) if clip.masks[t].max() > len(clip.objects)]
        assert shown == list(range(*clip.number_frames)) and (clip.number is None) == (not shown)
        assert len(shown) <= frames // 2
        assert "".join(region.name for region in clip.regions if region.kind == "digit") == (clip.number or "")


def test_answers_about_clips_are_true() -> None:
    for clip, question in asked("clip", 9, (80, 80)):
        things = [clip.objects[k - 1] for k in question.regions if k <= len(clip.objects)]
        new = [o for o in clip.objects if o.boxes[0] is None]
        if question.task == "moves":
            assert question.answer == way_of(things[0].boxes) and things[0].shape in question.text
        elif question.task == "becomes":
            assert things[0].shape in question.text and question.answer == things[0].colors[-1] != things[0].colors[0]
        elif question.task == "appears":
            assert [o.shape for o in new] == [question.answer] and len(clip.objects) > 1
        elif question.task == "order":
            starts = [o.boxes.index(next(box for box in o.boxes if box)) for o in things]
            assert abs(starts[0] - starts[1]) >= 2
            assert question.answer == things[int(np.argmin(starts))].shape
        elif question.task == "flash":
            assert question.answer == " ".join(clip.number or "")
        else:
            assert question.answer == NUMBERS[len(new)]


def way_of(boxes: Any) -> str:
    """Where an object goes, which is at least a third of the picture."""
    dx, dy = boxes[-1][0] - boxes[0][0], boxes[-1][1] - boxes[0][1]
    assert max(abs(dx), abs(dy)) >= 80 / 3 and min(abs(dx), abs(dy)) == 0
    return next(name for name, way in DIRECTIONS.items() if way == (np.sign(dx), np.sign(dy)))


def test_clips_differ_between_their_frames_only_where_something_happens() -> None:
    clips: list[Clip] = [clip for clip, _ in asked("clip", 11, (80, 80))]
    for clip in clips[:20]:
        changed = (clip.frames[1:] != clip.frames[:-1]).any(axis=(1, 2, 3))
        still = not clip.number and all(thing.role == "still" for thing in clip.objects)
        assert still == (not changed.any())


def test_a_clip_of_too_few_frames_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 8 frames"):
        draw_clip(np.random.default_rng(0), frames=7)
