"""The generated world: scenes, masks, questions."""

from collections import Counter

import numpy as np
import pytest

from vlmprune.assets.grounds import PHOTO_FOLDER
from vlmprune.assets.questions import (
    BENCHMARK_TASKS,
    CHANCE,
    SCENE_TASKS,
    TASKS,
    TRAINING_TASKS,
    Question,
    ask_all,
    normalise_answer,
    split_words,
    vocabulary,
)
from vlmprune.assets.world import COLORS, TEXTURES, Scene, draw_scene

MANY = 60


def scenes(seed: int, size: tuple[int, int] = (112, 112)) -> list[Scene]:
    rng = np.random.default_rng(seed)
    return [draw_scene(rng, size) for _ in range(MANY)]


@pytest.mark.parametrize("size", [(112, 112), (120, 120), (144, 96), (96, 144)])
def test_scene_has_the_asked_size_and_masks_that_match(size: tuple[int, int]) -> None:
    for scene in scenes(0, size):
        assert scene.size == size and scene.image.shape == (size[1], size[0], 3)
        assert scene.image.dtype == scene.masks.dtype == np.uint8
        assert scene.masks.shape == (size[1], size[0])
        assert [region.id for region in scene.regions] == list(range(1, len(scene.regions) + 1))
        assert set(np.unique(scene.masks)) == {0, *(region.id for region in scene.regions)}
        digits = "".join(region.name for region in scene.regions if region.kind == "digit")
        assert digits == (scene.plate or "")


def test_masks_show_the_object_s_colour_inside_its_box() -> None:
    full: list[bool] = []
    for scene in scenes(1):
        for number, thing in enumerate(scene.objects, start=1):
            rows, columns = np.nonzero(scene.masks == number)
            left, top, right, bottom = thing.box
            assert left <= columns.min() and columns.max() < right
            assert top <= rows.min() and rows.max() < bottom
            seen = np.median(scene.image[rows, columns].astype(float), axis=0)
            color = np.asarray(COLORS[thing.color])
            full.append(bool(np.abs(seen - color).max() <= 20))
            if not full[-1]:  # faint: 70 % of its colour, the rest is the ground
                ground = (seen - 0.7 * color) / 0.3
                assert ground.min() >= -50 and ground.max() <= 305
    assert 0.65 < np.mean(full) < 0.85


def test_a_seed_gives_the_same_scene() -> None:
    first, second = draw_scene(np.random.default_rng(5)), draw_scene(np.random.default_rng(5))
    assert (first.image == second.image).all() and first.objects == second.objects


def test_objects_lie_off_any_lattice() -> None:
    corners = Counter(thing.box[0] % 8 for scene in scenes(2) for thing in scene.objects)
    assert set(corners) == set(range(8))


def test_a_quarter_of_the_scenes_has_a_photograph_and_the_splits_are_disjoint() -> None:
    share = Counter(scene.background for seed in range(4) for scene in scenes(seed))
    assert set(share) == set(TEXTURES)
    assert 0.15 < share["photo"] / (4 * MANY) < 0.35
    names = [{path.name for path in (PHOTO_FOLDER / split).glob("*.jpg")} for split in ("train", "held_out")]
    assert names[0].isdisjoint(names[1]) and len(names[1]) == 3
    assert sum(path.stat().st_size for path in PHOTO_FOLDER.rglob("*.jpg")) < 400_000
    with pytest.raises(ValueError, match="No photographs"):
        draw_scene(np.random.default_rng(0), photos="absent", photo_share=1.0)


def all_questions(seed: int = 0) -> list[tuple[Scene, Question]]:
    rng = np.random.default_rng(seed)
    drawn = scenes(seed)
    return [(scene, question) for scene in drawn for question in ask_all(scene, rng, SCENE_TASKS + TRAINING_TASKS)]


def test_questions_stay_inside_the_vocabulary_and_are_normal() -> None:
    words = set(vocabulary())
    for _, question in all_questions():
        assert set(split_words(f"{question.text} {question.answer}")) <= words
        assert " ".join(split_words(question.text)) == question.text
        assert normalise_answer(question.answer) == question.answer
    assert normalise_answer(" Red Red.") == "red red" and normalise_answer("407") == "4 0 7"


def test_every_task_is_asked_in_several_wordings_and_has_a_chance_level() -> None:
    assert set(TASKS) == set(CHANCE) and set(SCENE_TASKS) < set(TASKS) and len(BENCHMARK_TASKS) == 11
    asked: dict[str, set[str]] = {}
    for _, question in all_questions():
        asked.setdefault(question.task, set()).add(" ".join(question.text.split()[:3]))
    assert set(asked) == set(SCENE_TASKS + TRAINING_TASKS)
    assert all(len(asked[task]) >= 3 for task in SCENE_TASKS)


def test_pairs_hold_one_yes_and_one_no() -> None:
    rng = np.random.default_rng(4)
    for scene in scenes(4):
        pairs: dict[int, list[str]] = {}
        for question in ask_all(scene, rng):
            if question.pair is not None:
                pairs.setdefault(question.pair, []).append(question.answer)
        assert all(sorted(answers) == ["no", "yes"] for answers in pairs.values())


def test_answers_are_true() -> None:
    for scene, question in all_questions(7):
        things = [scene.objects[k - 1] for k in question.regions if question.task not in ("ocr", "letter")]
        words = question.text.split()
        if question.task == "color":
            assert question.answer == things[0].color and things[0].shape in words
        elif question.task == "size":
            assert question.answer == things[0].size
        elif question.task == "position":
            x, y = things[0].center
            assert question.answer == f"{'top' if y < 56 else 'bottom'} {'left' if x < 56 else 'right'}"
        elif question.task == "spatial":
            first, second = things if _order(question.text, things) else reversed(things)
            gap = {
                "left": second.center[0] - first.center[0],
                "right": first.center[0] - second.center[0],
                "above": second.center[1] - first.center[1],
                "below": first.center[1] - second.center[1],
            }
            relation = next(word for word in words if word in gap)
            assert (gap[relation] > 0) == (question.answer == "yes")
        elif question.task == "exist":
            there = any(thing.color in words and thing.shape in words for thing in scene.objects)
            assert there == (question.answer == "yes")
        elif question.task == "count":
            assert question.answer == ("zero", "one", "two", "three", "four", "five")[len(scene.objects)]
        elif question.task == "mcq" and things and words[-8] == "(a)":
            chosen = words[words.index(question.answer) + 1]
            assert chosen in (things[0].color, things[0].shape, things[0].size)
        elif question.task == "ocr":
            assert question.answer.replace(" ", "") == scene.plate


def _order(text: str, things: list) -> bool:
    names = [f"{thing.color} {thing.shape}" for thing in things]
    return text.index(names[0]) < text.index(names[1])
