"""`vlmprune bench --frames 4,8 --tokens 12`: more frames at an equal budget."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from harness_data import lines, picture, video
from tiny_folder import save_family

from vlmprune import cli
from vlmprune.bench import plan as plans
from vlmprune.bench.compare import build_tables
from vlmprune.bench.plan import Plan
from vlmprune.bench.runner import run_bench
from vlmprune.bench.store import load_records, load_results
from vlmprune.core.errors import UserError
from vlmprune.report import build
from vlmprune.tasks import get_task
from vlmprune.tasks.frames import read_framed, with_frames

Captured = pytest.CaptureFixture[str]
ROW = {"question": "what color is it ?", "answer": "red"}
MADE_UP = ("synth-ocr", "videos in files, and synth-ocr makes up its questions")
A_FRAME = 10  # visual tokens of Qwen2.5-VL for each frame of 64 x 48 pixels


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("av")
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("data")
    video(folder / "a.mp4")
    video(folder / "b.mp4")
    picture(size=(60, 30)).save(folder / "a.png")
    lines(folder / "clips.jsonl", [{**ROW, "video": "a.mp4"}, {**ROW, "video": "b.mp4", "frames": 3}])
    lines(folder / "mixed.jsonl", [{**ROW, "video": "a.mp4"}, {**ROW, "image": "a.png"}])
    save_family("qwen2_5_vl", folder / "model")
    return folder


def test_a_task_with_so_many_frames(folder: Path) -> None:
    plain, framed = get_task(str(folder / "clips.jsonl")), get_task(f"{folder / 'clips.jsonl'}@16frames")
    assert framed.name == "clips.jsonl@16frames" and framed.metric == plain.metric
    samples = list(framed.samples())
    assert [sample.id for sample in samples] == [sample.id for sample in plain.samples()]
    assert [sample.video and (sample.video.frames, sample.video.rate) for sample in samples] == [(16, None)] * 2
    assert len({sample.digest() for task in (plain, framed) for sample in task.samples()}) == 4
    assert with_frames(("a", "b"), (8, 16, 8)) == ("a@8frames", "a@16frames", "b@8frames", "b@16frames")
    for name, said in ((folder / "mixed.jsonl", "tasks about videos, and .* is about a picture"), MADE_UP):
        with pytest.raises(UserError, match=f"frames=8 is for {said}"):
            list(get_task(f"{name}@8frames").samples())
    with pytest.raises(UserError, match="There is no task 'nothing'"):
        get_task("nothing@8frames")


def test_rows_for_each_number_of_frames(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plans, "BASELINES", ())
    tasks = with_frames((str(folder / "clips.jsonl"),), (4, 8, 2))
    plan = Plan(models=(str(folder / "model"),), tasks=tasks, methods=("divprune",), keeps=(12,), device="cpu")
    out = tmp_path / "out"
    run_bench(plan, out)
    for result in load_results(out):
        frames = int(result.task.partition("@")[2].removesuffix("frames"))
        for record in load_records(result):
            assert record.visual_before == A_FRAME * frames
            assert record.visual_kept == (record.visual_before if result.is_vanilla else min(12, A_FRAME * frames))
    (table,) = build_tables(out)
    rows = {(row.name[0], row.frames): row for row in table.by_frames}
    assert list(rows) == [(name, frames) for name in ("vanilla", "divprune:12") for frames in (2, 4, 8)]
    assert rows["vanilla", 2].diff is None and all(row.diff for name, row in rows.items() if name != ("vanilla", 2))
    assert all(row.task == "clips.jsonl" and row.base == 2 for row in rows.values())
    flops = {name: row.flops for name, row in rows.items()}
    for frames in (2, 4, 8):  # the encoder sees every frame, and the language model the same number of tokens
        pruned, whole = flops["divprune:12", frames], flops["vanilla", frames]
        assert pruned is not None and whole is not None and pruned.encoder == whole.encoder
    few, many = flops["divprune:12", 4], flops["divprune:12", 8]
    assert few is not None and many is not None
    assert many.encoder == pytest.approx(2 * (few.encoder or 0)) and many.prefill == few.prefill
    build(out)
    text = (out / "report" / "summary.md").read_text()
    assert "more frames at an equal budget" in text and "| divprune:12 | clips.jsonl | 8 | 80.0 | 12.0 | 12.0 |" in text
    head, *found = (out / "report" / "frames.csv").read_text().splitlines()
    assert head.startswith("model,task,recipe,positions,frames,tokens_before,tokens_kept") and len(found) == 6


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--frames", "8"), "--frames 8 needs tasks about videos: name them with --tasks."),
        (
            ("--tasks", "{}", "--tokens", "8"),
            "--tokens is for several numbers of frames: give with it --frames 8,16,32",
        ),
        (("--tasks", "{}", "--frames", "8", "--tokens", "9", "--keep", "0.2"), "both say what is kept: give one."),
        (("--tasks", "{}", "--frames", "0"), "--frames needs whole numbers from 1"),
        (("--tasks", "{}", "--frames", "8", "--tokens", "0"), "--tokens 0 needs whole numbers from 1"),
        (("--tasks", "{}", "--frames", "many"), "must be whole numbers separated by commas, and 'many' is not one."),
        (("--tasks", "synth-ocr", "--frames", "8"), "is for videos in files, and synth-ocr makes up its questions"),
        (("--tasks", "mixed", "--frames", "8"), "is for tasks about videos, and"),
        (("--speed", "--frames", "8"), "--frames is not for timings"),
    ],
)
def test_what_cannot_be_run_is_told(given: tuple[str, ...], said: str, folder: Path, capsys: Captured) -> None:
    paths = {"{}": str(folder / "clips.jsonl"), "mixed": str(folder / "mixed.jsonl")}
    words = [paths.get(word, word) for word in given]
    assert cli.main(["bench", "--model", str(folder / "model"), "--out", str(folder / "out"), *words]) != 0
    error = capsys.readouterr().err
    assert said in error and "Traceback" not in error


def test_frames_as_pictures(folder: Path) -> None:
    plain, shown = get_task(str(folder / "clips.jsonl")), get_task(f"{folder / 'clips.jsonl'}@4frames@pictures")
    assert shown.name == "clips.jsonl@4frames@pictures" and not shown.endless and shown.metric == plain.metric
    assert read_framed(shown.name) == ("clips.jsonl@pictures", 4)
    assert with_frames(("clips.jsonl@pictures",), (4,)) == (shown.name,)
    four = list(get_task(f"{folder / 'clips.jsonl'}@4frames").samples())
    for video, pictures in zip(four, shown.samples(), strict=True):
        assert video.frames is not None and pictures.video is None and pictures.question == video.question
        assert [np.asarray(image).tolist() for image in pictures.images] == video.frames.pixels.tolist()
        assert len({picture.content() for picture in pictures.pictures}) == 4
    with pytest.raises(UserError, match="mixed.* has no video: name the task without @pictures"):
        list(get_task(f"{folder / 'mixed.jsonl'}@pictures").samples())


def test_generated_clips_as_pictures_on_a_model_that_takes_no_videos(tmp_path: Path) -> None:
    task = get_task("synth-video@pictures")
    assert task.endless and len(next(iter(task.samples())).pictures) == 8
    run_bench(Plan(models=("llava",), tasks=(task.name,), methods=("random",), keeps=(0.1,), limit=2), tmp_path)
    kept = {(result.is_vanilla, r.visual_kept) for result in load_results(tmp_path) for r in load_records(result)}
    assert kept == {(True, 8 * 196), (False, 8 * 20)}
