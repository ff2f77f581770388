"""Frames of videos: which are chosen, how they reach a model, and what is said where they cannot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from harness_data import lines, own, picture, problems, video
from tiny_folder import save_family, save_llava

from vlmprune.bench import plan as plans
from vlmprune.bench.plan import Plan
from vlmprune.bench.protocol import PLAIN, Asker
from vlmprune.bench.runner import run_bench
from vlmprune.bench.store import load_records, load_results
from vlmprune.core import extras
from vlmprune.core.errors import UserError
from vlmprune.data.video import Clip
from vlmprune.models.frames import frame_processor
from vlmprune.models.processors import load_processor, takes_videos
from vlmprune.tasks.own import own_task

pytest.importorskip("av")
ROW = {"question": "what color is the circle ?", "answer": "red"}


def greys(clip: Clip) -> list[int]:
    """The numbers of the frames as their pixels tell them (`harness_data.video`)."""
    frames = clip.open()
    assert frames is not None and frames.pixels.dtype == np.uint8 and frames.pixels.shape[1:] == (48, 64, 3)
    return [round(float(frame.mean()) / 10) for frame in frames.pixels]


@pytest.mark.parametrize(
    ("clip", "chosen"),
    [
        ({"frames": 4}, [0, 6, 12, 19]),
        ({"frames": 1}, [0]),
        ({"frames": 20}, list(range(20))),
        ({"frames": 25}, sorted([*range(20), 3, 7, 11, 15, 18])),
        ({"frames": 64, "rate": 2}, [0, 6, 12, 19]),  # two seconds
        ({"frames": 3, "rate": 5}, [0, 9, 19]),
    ],
)
def test_frames_by_count_and_by_rate(clip: dict[str, Any], chosen: list[int], tmp_path: Path) -> None:
    one = Clip(video(tmp_path / "v.mp4"), **clip)
    frames = one.open()
    assert (frames.total, frames.fps) == (20, 10.0) and len(frames.indices) == len(chosen)
    assert greys(one) == list(frames.indices)
    if clip["frames"] != 25:
        assert list(frames.indices) == chosen


def test_an_animated_gif_is_a_video(tmp_path: Path) -> None:
    from PIL import Image

    pictures = [Image.new("RGB", (64, 48), (10 * k,) * 3) for k in range(12)]
    pictures[0].save(tmp_path / "v.gif", save_all=True, append_images=pictures[1:], duration=100)
    assert greys(Clip(tmp_path / "v.gif", 3)) == [0, 5, 11]


def test_a_file_that_says_it_is_longer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlmprune.data.video._count", lambda av, path: (200, 10.0))
    assert greys(Clip(video(tmp_path / "v.mp4"), 4)) == [0, 6, 12, 19]


@pytest.mark.parametrize("content", [b"", b"no video", b"cut"])
def test_a_video_that_cannot_be_read(content: bytes, tmp_path: Path) -> None:
    path = video(tmp_path / "v.mp4")
    path.write_bytes(path.read_bytes()[:300] if content == b"cut" else content)
    with pytest.raises(UserError, match=r"The video '.*v.mp4' cannot be read: \w"):
        Clip(path).open()


def test_videos_need_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "v.mp4").write_bytes(b"")
    path = lines(tmp_path / "my.jsonl", [{**ROW, "video": "v.mp4"}])

    def without(name: str) -> object:
        raise ImportError(name)

    monkeypatch.setattr(extras, "import_module", without)
    with pytest.raises(UserError, match=r"A video needs av: pip install 'vlmprune\[video\]'"):
        own(path)


def test_faults_of_rows_with_videos(tmp_path: Path) -> None:
    video(tmp_path / "v.mp4", 2)
    picture().save(tmp_path / "a.png")
    rows = [
        {"id": "good", **ROW, "video": "v.mp4", "frames": 4, "fps": 2},
        {"id": "by name", **ROW, "file_name": "v.mp4"},
        {"id": "gone", **ROW, "video": "w.mp4"},
        {"id": "both", **ROW, "video": "v.mp4", "image": "a.png"},
        {"id": "frames", **ROW, "video": "v.mp4", "frames": "x"},
        {"id": "fps", **ROW, "video": "v.mp4", "fps": 0},
    ]
    samples = own(lines(tmp_path / "my.jsonl", rows))
    found = problems(samples)
    assert samples[0].video == Clip(tmp_path / "v.mp4", 4, 2.0) and samples[1].video == Clip(tmp_path / "v.mp4")
    assert list(found) == ["gone", "both", "frames", "fps"]
    assert "there is no video" in found["gone"] and "a picture and a video" in found["both"]
    assert "'x'" in found["frames"] and "above 0" in found["fps"]


# ---------------------------------------------------------------- to the model

# Visual tokens of eight frames of 64 x 48 pixels. Qwen: at most 1,536 pixels a frame, in steps of 8, so 40 x 32, and 20
# slots of 8 x 8 for each two frames. The others: every frame of one size, with a CLS slot, or pooled and a line break.
FAMILIES = {"video_llava": 8 * 17, "llava_onevision": 8 * 9 + 1, "qwen2_vl": 4 * 20, "qwen2_5_vl": 4 * 20}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    video(folder / "v.mp4")
    video(folder / "short.mp4", 5)
    picture(size=(60, 30)).save(folder / "a.png")
    rows = [{**ROW, "video": "v.mp4"}, {**ROW, "video": "short.mp4"}, {**ROW, "image": "a.png"}]
    return lines(folder / "my.jsonl", rows)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_run_on_videos(family: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plans, "BASELINES", ("random",))  # two of the families have slots that no smaller picture has
    folder = save_family(family, tmp_path / "model")
    plan = Plan(
        models=(str(folder),), tasks=(str(data),), methods=("divprune",), keeps=(0.5,), batch_size=2, device="cpu"
    )
    run_bench(plan, tmp_path / "out")
    results = {result.recipe: load_records(result) for result in load_results(tmp_path / "out")}
    for recipe, records in results.items():
        assert [record.problem for record in records] == [""] * 3
        whole = FAMILIES[family]
        assert [record.visual_before for record in records[:2]] == [whole, whole]
        if recipe in ("random:0.5", "divprune:0.5"):
            assert all(record.visual_kept == max(1, round(0.5 * record.visual_before)) for record in records)


def test_the_frames_of_a_batch_are_those_of_each_alone(data: Path, tmp_path: Path) -> None:
    """For Qwen, whose patches join two frames: each frame is where transformers' layout has it."""
    save_family("qwen2_5_vl", tmp_path)
    processor = load_processor(tmp_path)
    task = own_task(str(data))
    samples = [sample for sample in task.samples() if sample.video]
    asker = Asker(PLAIN, task, processor, "qwen2_5_vl")
    both, one = asker.inputs(samples), asker.inputs(samples[:1])
    assert torch.equal(both["pixel_values_videos"][: len(one["pixel_values_videos"])], one["pixel_values_videos"])
    assert both["video_grid_thw"].tolist() == [[4, 8, 10]] * 2
    # of one grey, darker frames first: a row's halves are two frames, and patches of a pair stand together
    values = one["pixel_values_videos"].view(4, 80, 3, 2, 16)
    assert torch.all(values.std(-1) < 1e-5)
    order = values[:, 0, 0, :, 0].flatten()
    assert torch.all(order.diff() > 0) and torch.all(values == values[:, :1])
    assert one["second_per_grid_ts"].tolist() == [2 / (8 / 2)]  # eight frames of two seconds, two a patch


def test_families_without_a_way_for_videos_say_so(data: Path, tmp_path: Path) -> None:
    save_llava(tmp_path / "llava")
    save_family("qwen3_vl", tmp_path / "qwen")
    sample = next(own_task(str(data)).samples())
    for name, why in [("llava", "llava takes pictures only"), ("qwen", "qwen needs torchvision")]:
        processor = load_processor(tmp_path / name)
        asker = Asker(PLAIN, own_task(str(data)), processor, name)
        assert not takes_videos(processor) and why in asker.refuses(sample)
    assert frame_processor("qwen3_vl", tmp_path / "qwen") is None


def test_rows_that_choose_different_numbers_of_frames(data: Path, tmp_path: Path) -> None:
    save_family("video_llava", tmp_path / "model")
    rows = [{**ROW, "video": "v.mp4", "frames": count} for count in (2, 4)]
    task = own_task(str(lines(data.with_name("two.jsonl"), rows)))
    asker = Asker(PLAIN, task, load_processor(tmp_path / "model"), "video_llava")
    with pytest.raises(UserError, match="must have the same number of frames"):
        asker.inputs(list(task.samples()))
