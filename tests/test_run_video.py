"""`vlmprune run` on videos, animated pictures and folders of frames."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness_data import picture, video
from PIL import Image
from tiny_folder import save_family, save_llava

from vlmprune import cli
from vlmprune.ask.media import open_media
from vlmprune.core.errors import UserError
from vlmprune.data.video import Frames

Captured = pytest.CaptureFixture[str]
QUESTION = ("-q", "what color is it ?")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("av")
    folder = tmp_path_factory.mktemp("data")
    save_family("qwen2_5_vl", folder / "model")
    video(folder / "v.mp4")
    moving = [Image.new("L", (32, 24), 12 * number) for number in range(20)]
    moving[0].save(folder / "moving.gif", save_all=True, append_images=moving[1:], duration=100)
    moving[7].save(folder / "still.gif")
    (folder / "frames").mkdir()
    for number in (1, 2, 10):
        Image.new("RGB", (32, 24), (number, 0, 0)).save(folder / "frames" / f"f{number}.png")
    (folder / "frames" / "notes.txt").write_text("no frame")
    picture().save(folder / "a.png")
    return folder


def run(folder: Path, what: str, *more: str) -> int:
    return cli.main(["run", str(folder / what), *QUESTION, "--model", str(folder / "model"), *more])


@pytest.mark.parametrize(
    ("what", "more", "frames"),
    [("v.mp4", (), 8), ("v.mp4", ("--frames", "4"), 4), ("v.mp4", ("--fps", "2"), 4), ("moving.gif", (), 8),
     ("frames", ("--frames", "2"), 2)],
)  # fmt: skip
def test_a_video_is_answered_and_drawn(
    what: str, more: tuple[str, ...], frames: int, folder: Path, tmp_path: Path, capsys: Captured
) -> None:
    target = tmp_path / "strip.png"
    given = ("--method", "divprune", "--keep", "0.25", "--overlay", str(target), "--json", "--max-new-tokens", "3")
    assert run(folder, what, *more, *given) == 0
    said = json.loads(capsys.readouterr().out)
    tokens = said["visual_tokens"]
    assert said["recipe"] == "divprune:0.25" and tokens["after"] == -(-tokens["before"] // 4)
    assert len(said["kept_by_frame"]) == frames // 2 and sum(said["kept_by_frame"]) == tokens["after"]
    with Image.open(target) as drawn:
        assert drawn.width == 22 + frames // 2 * ((256 if what == "v.mp4" else 224) + 18)  # enlarged by whole numbers


@pytest.mark.parametrize(("keep", "kept"), [("3/frame", [3, 3]), ("[4, 2]", [4, 2]), ("[4, 0.5]/frame", None)])
def test_a_budget_for_each_frame(keep: str, kept: list[int] | None, folder: Path, capsys: Captured) -> None:
    given = ("--frames", "4", "--method", "divprune", "--json", "--max-new-tokens", "2")
    assert run(folder, "v.mp4", *given, "--keep", keep) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["kept_by_frame"] == (kept or [4, said["visual_tokens"]["before"] // 4])
    assert run(folder, "v.mp4", *given, "--keep", "[4, 2, 1]") == 2
    assert "one video of 2 frames: give one for each frame" in capsys.readouterr().err
    assert run(folder, "v.mp4", *given, "--keep", "4/second") == 2
    assert "'4/second' is not a budget" in capsys.readouterr().err


def test_without_a_method(folder: Path, capsys: Captured) -> None:
    assert run(folder, "v.mp4", "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert said["recipe"] is None and set(said) == {"answer", "recipe", "seconds"}
    assert run(folder, "v.mp4") == 0 and capsys.readouterr().out.strip() == said["answer"]


def test_what_the_frames_are(folder: Path) -> None:
    found = open_media(folder / "frames", 3)
    assert isinstance(found, Frames) and found.pixels[:, 0, 0, 0].tolist() == [1, 2, 10] and found.indices == (0, 1, 2)
    found = open_media(folder / "frames", fps=0.5)
    assert isinstance(found, Frames) and found.indices == (0, 2)
    found = open_media(folder / "moving.gif", 3)
    assert isinstance(found, Frames) and np.allclose(found.pixels[:, 0, 0, 0], [0, 108, 228], atol=2)
    assert isinstance(open_media(folder / "still.gif"), Image.Image)


@pytest.mark.parametrize(
    ("what", "more", "sentence"),
    [
        ("a.png", ("--frames", "4"), "--frames 4 is for videos"),
        ("v.mp4", ("--frames", "0"), "--frames 0 must be above 0"),
        ("v.mp4", ("--fps", "-1"), "--fps -1.0 must be above 0"),
        ("w.mp4", (), "There is no video"),
        ("w.gif", (), "There is no video"),
        ("v.mp4", ("--max-new-tokens", "0"), "--max-new-tokens 0 must be at least 1"),
        ("v.mp4", ("--device", "cudo"), "--device cudo is not a device"),
        ("v.mp4", ("--device", "meta"), "--device meta cannot be used here"),
    ],
)
def test_mistakes(what: str, more: tuple[str, ...], sentence: str, folder: Path, capsys: Captured) -> None:
    assert run(folder, what, *more) == 2
    said = capsys.readouterr().err
    assert sentence in said and "Traceback" not in said


def test_folders_that_are_no_video(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no frames"):
        open_media(tmp_path)
    picture(0).save(tmp_path / "a1.png")
    picture(1, (8, 8)).save(tmp_path / "a2.png")
    with pytest.raises(
        UserError, match=r"not of one size, as a video's are: a2.png has 8x8 pixels, and a1.png 24x16.*each=True"
    ):
        open_media(tmp_path, 2)


def test_a_model_of_pictures_says_so(folder: Path, tmp_path: Path, capsys: Any) -> None:
    model = str(save_llava(tmp_path / "model"))
    assert cli.main(["run", str(folder / "v.mp4"), *QUESTION, "--model", model]) == 2
    assert "prepares no videos here" in capsys.readouterr().err
    model = str(save_family("qwen2_5_vl", tmp_path / "other"))
    template = tmp_path / "other" / "chat_template.jinja"
    template.write_text(template.read_text().replace("video", "film"))
    assert cli.main(["run", str(folder / "v.mp4"), *QUESTION, "--model", model]) == 2
    assert "chat template has no place for a video" in capsys.readouterr().err
