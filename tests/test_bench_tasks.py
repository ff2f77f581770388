"""The generated tasks: fixed streams, balanced questions, right answers."""

import numpy as np
import pytest
from transformers import CLIPVisionConfig, LlavaConfig, Qwen2_5_VLConfig

from training import backend_qwen
from vlmprune.bench.score import judge
from vlmprune.bench.tasks import FIXED, MIXED, TASKS, Canvas, canvas_for, digest, get_task
from vlmprune.core.errors import UserError


@pytest.mark.parametrize("name", TASKS)
def test_a_longer_run_starts_with_the_same_samples(name: str) -> None:
    task = TASKS[name]
    short, long = list(task.samples(6)), list(task.samples(12))
    assert digest(short) == digest(long[:6]) != digest(long)
    assert len({sample.id for sample in long}) == 12


@pytest.mark.parametrize("name", TASKS)
def test_samples_are_answerable_and_scored_right(name: str) -> None:
    task = TASKS[name]
    samples = list(task.samples(36, MIXED))
    assert {sample.category for sample in samples} == set(task.categories)
    for sample in samples:
        assert judge(sample.kind, sample.answers[0], sample.answers, sample.options).score == 1.0
        assert sample.image.size in MIXED.sizes and sample.image.mode == "RGB"
        assert (len(sample.options) == 4) == (sample.kind == "choice")
        assert not sample.regions or max(sample.regions) <= sample.scene.masks.max()
    sizes = {(sample.category, sample.image.size) for sample in samples}
    assert len(sizes) > len(task.categories), "sizes follow the categories"


def test_pairs_are_whole_and_have_a_yes_and_a_no() -> None:
    samples = list(TASKS["synth-mme"].samples(21))
    assert len(samples) == 20
    for first, second in zip(samples[::2], samples[1::2], strict=True):
        assert first.group == second.group and first.scene is second.scene
        assert {first.answers[0], second.answers[0]} == {"yes", "no"}
    assert len(list(TASKS["synth-mme"].samples(1))) == 2


def test_photographs_are_among_the_backgrounds() -> None:
    samples = list(TASKS["synth-ocr"].samples(120))
    share = np.mean([sample.scene.background == "photo" for sample in samples])
    assert 0.15 < share < 0.4


def test_scenes_are_enlarged_for_larger_models() -> None:
    sample = next(TASKS["synth-ocr"].samples(1, Canvas(((112, 112),), 3.0)))
    assert sample.image.size == (336, 336) and sample.scene.size == (112, 112)


def test_canvas_follows_the_model() -> None:
    assert canvas_for(LlavaConfig(vision_config=CLIPVisionConfig(image_size=112))) == FIXED
    assert canvas_for(LlavaConfig()) == Canvas(FIXED.sizes, 3.0)  # LLaVA-1.5: 336 pixels
    assert canvas_for(Qwen2_5_VLConfig(vision_config={"patch_size": 5})) == MIXED
    assert canvas_for(Qwen2_5_VLConfig()) == Canvas(MIXED.sizes, 2.8)  # 28 pixels a slot


def test_mixed_sizes_are_those_the_embedded_model_was_trained_on() -> None:
    assert MIXED.sizes == backend_qwen.SIZES


def test_unknown_task() -> None:
    assert get_task("synth-pope").chance == pytest.approx(100 * 2 / 3)  # always yes
    with pytest.raises(UserError, match="did you mean 'synth-pope'"):
        get_task("synth-pop")
