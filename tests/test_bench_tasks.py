"""The generated tasks: fixed streams, balanced questions, right answers."""

from itertools import islice

import numpy as np
import pytest
from transformers import CLIPVisionConfig, LlavaConfig, Qwen2_5_VLConfig

from training import backend_qwen
from vlmprune.ask.examples import drawn
from vlmprune.bench.protocol import content_of
from vlmprune.bench.questions import Questions
from vlmprune.core.errors import UserError
from vlmprune.scoring.replies import score_reply
from vlmprune.tasks import generated_tasks, get_task
from vlmprune.tasks.canvas import FIXED, MIXED, Canvas, canvas_for
from vlmprune.tasks.drawing import DrawnClip, DrawnPicture
from vlmprune.tasks.task import Place

TASKS = generated_tasks()


@pytest.mark.parametrize("name", TASKS)
def test_a_longer_run_starts_with_the_same_samples(name: str) -> None:
    short, long = (Questions(TASKS[name], Place(), n) for n in (6, 12))
    assert short.ids == long.ids[:6] and len(set(long.ids)) == 12
    assert [sample.digest() for sample in short] == [sample.digest() for sample in long][:6]
    assert short.digest == Questions(TASKS[name], Place(), 6).digest != long.digest


@pytest.mark.parametrize("name", TASKS)
def test_samples_are_answerable_and_scored_right(name: str) -> None:
    task = TASKS[name]
    samples = list(Questions(task, Place(MIXED), 36))
    assert {sample.category for sample in samples} == set(task.categories)
    for sample in samples:
        assert score_reply(sample.kind, sample.answers[0], sample.answers, sample.options).score == 1.0
        assert (len(sample.options) == 4) == (sample.kind == "choice")
        assert task.has_videos == (sample.video is not None) == (not sample.pictures)
        for image, picture in zip(sample.images, sample.pictures, strict=True):
            assert isinstance(picture, DrawnPicture)
            assert image.size in MIXED.sizes and image.mode == "RGB"
            assert not picture.regions or max(picture.regions) <= picture.scene.masks.max()
    sizes = {(sample.category, image.size) for sample in samples for image in sample.images}
    assert task.has_videos or len(sizes) > len(task.categories), "sizes follow the categories"


def test_two_pictures_are_both_shown_and_one_of_them_is_asked_about() -> None:
    for sample in Questions(TASKS["synth-images"], Place(), 9):
        first, second = sample.pictures
        assert isinstance(first, DrawnPicture) and isinstance(second, DrawnPicture)
        assert not (first.regions and second.regions) and (first.regions or second.regions)
        assert content_of(sample.question, sample)[:2] == [{"type": "image"}] * 2


def test_a_clip_is_eight_frames_at_the_models_scale() -> None:
    sample = next(TASKS["synth-video"].samples(Place(Canvas(((112, 112),), 3.0))))
    assert sample.frames is not None and isinstance(sample.video, DrawnClip)
    assert sample.frames.pixels.shape == (8, 240, 240, 3) and sample.frames.pixels.dtype == np.uint8
    assert sample.frames.indices == tuple(range(8)) and sample.frames.total == 8
    small = DrawnClip(sample.video.clip, 1.0, ())
    assert (small.open().pixels == sample.video.clip.frames).all() and small.digest() != sample.video.digest()


def test_pairs_are_whole_and_have_a_yes_and_a_no() -> None:
    samples = list(Questions(TASKS["synth-mme"], Place(), 21))
    assert len(samples) == 20
    for first, second in zip(samples[::2], samples[1::2], strict=True):
        assert first.group == second.group and drawn(first).scene is drawn(second).scene
        assert {first.answers[0], second.answers[0]} == {"yes", "no"}
    assert len(Questions(TASKS["synth-mme"], Place(), 1)) == 2


def test_photographs_are_among_the_backgrounds() -> None:
    samples = islice(TASKS["synth-ocr"].samples(), 120)
    share = np.mean([drawn(sample).scene.background == "photo" for sample in samples])
    assert 0.15 < share < 0.4


def test_scenes_are_enlarged_for_larger_models() -> None:
    sample = next(TASKS["synth-ocr"].samples(Place(Canvas(((112, 112),), 3.0))))
    assert sample.images[0].size == (336, 336) and drawn(sample).scene.size == (112, 112)


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
