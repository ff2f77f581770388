"""Nothing that the user has is lost to what a command writes, and the refusal comes before the work."""

from __future__ import annotations

import os
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_results import fill
from PIL import Image
from tiny_folder import save_llava

from vlmprune import cli
from vlmprune.bench import load
from vlmprune.bench.store import Store
from vlmprune.core.errors import UserError
from vlmprune.core.outputs import EXTENSIONS, FOLDER_MARK, check_picture, save_picture
from vlmprune.fit.calibration import Fit

SMALL: dict[str, Any] = {"models": ["llava"], "methods": ["random"], "keeps": [0.25], "tasks": ["synth-ocr"], "n": 4}
QUESTION = ["-q", "What is it?", "--method", "random", "--keep", "0.5"]


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.new("RGB", (40, 40), "green").save(path)
    return path


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """No model is loaded."""

    def load_nothing(*_: object, **__: object) -> None:
        raise AssertionError("the work has begun")

    monkeypatch.setattr(load, "_load", load_nothing)


def same(path: Path) -> Path:
    return path


def spelled_otherwise(path: Path) -> Path:
    return path.parent / "." / ".." / path.parent.name / path.name


def symbolic(path: Path) -> Path:
    (path.parent / "link.png").symlink_to(path)
    return path.parent / "link.png"


def hard(path: Path) -> Path:
    os.link(path, path.parent / "hard.png")
    return path.parent / "hard.png"


@pytest.mark.parametrize("force", [[], ["--force"]])
@pytest.mark.parametrize("as_overlay", [same, spelled_otherwise, symbolic, hard])
def test_the_picture_asked_about_is_never_overwritten(
    as_overlay: Callable[[Path], Path], force: list[str], photo: Path, no_work: None, capsys: pytest.CaptureFixture[str]
) -> None:
    before = photo.read_bytes()
    assert cli.main(["run", str(photo), *QUESTION, "--overlay", str(as_overlay(photo)), *force]) == 2
    assert "which it is made from" in capsys.readouterr().err
    assert photo.read_bytes() == before


def test_not_even_where_vlmprune_wrote_it(photo: Path, no_work: None) -> None:
    save_picture(Image.open(photo), photo)
    assert cli.main(["run", str(photo), *QUESTION, "--overlay", str(photo), "--force"]) == 2


@pytest.mark.parametrize("ending", EXTENSIONS)
@pytest.mark.parametrize("command", ["run", "doctor"])
def test_a_file_of_the_users_is_overwritten_with_force_alone(
    command: str, ending: str, photo: Path, no_work: None, capsys: pytest.CaptureFixture[str]
) -> None:
    other = photo.with_name(f"other{ending}")
    Image.new("RGB", (40, 40), "blue").save(other)
    before = other.read_bytes()
    if command == "run":
        arguments = ["run", str(photo), *QUESTION, "--overlay", str(other)]
    else:
        arguments = ["doctor", "llava", "--picture", str(other)]
    assert cli.main(arguments) == 2
    err = capsys.readouterr().err
    assert "which vlmprune did not write" in err and "or --force" in err and err.count("\n") == 1
    assert other.read_bytes() == before
    with pytest.raises(AssertionError, match="the work has begun"):
        cli.main([*arguments, "--force"])


@pytest.mark.parametrize("ending", EXTENSIONS)
def test_a_picture_of_ours_is_overwritten(ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"overlay{ending}"
    for color in ("red", "blue"):
        save_picture(Image.new("RGB", (8, 8), color), check_picture(path, "overlay"))
    assert Image.open(path).convert("RGB").getpixel((4, 4))[2] > 250  # type: ignore[index]


def test_the_same_run_may_be_repeated(photo: Path) -> None:
    arguments = ["run", str(photo), *QUESTION, "--overlay", str(photo.with_name("overlay.png"))]
    assert cli.main(arguments) == 0
    assert cli.main(arguments) == 0


@pytest.mark.parametrize("text", ["not a picture", ""])
def test_a_file_that_is_not_a_picture_is_not_ours(text: str, tmp_path: Path) -> None:
    (tmp_path / "plan.png").write_text(text)
    with pytest.raises(UserError, match="force=True"):
        check_picture(tmp_path / "plan.png", "overlay")


def test_a_format_that_pillow_cannot_write_is_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.init()
    monkeypatch.delitem(Image.SAVE, "WEBP")
    with pytest.raises(UserError, match=r"let the overlay end in \.png"):
        check_picture(tmp_path / "overlay.webp", "overlay")


# ---------------------------------------------------------------- folders


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_llava(tmp_path_factory.mktemp("model")))


BENCH = ["--methods", "random", "--keep", "0.5", "--tasks", "synth-pope", "--limit", "2"]


@pytest.mark.parametrize("place", ["results", "results/report"])
def test_bench_writes_among_no_files_of_the_users(
    place: str, model: str, tmp_path: Path, no_work: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither into the folder that --out names, nor into the report's."""
    mine = tmp_path / place / "index.html"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    arguments = ["bench", "--model", model, *BENCH, "--out", str(tmp_path / "results")]
    assert cli.main(arguments) == 2
    err = capsys.readouterr().err
    assert "which vlmprune did not write" in err and "or --force" in err and err.count("\n") == 1
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [mine] and mine.read_text() == "mine"
    with pytest.raises(AssertionError, match="the work has begun"):
        cli.main([*arguments, "--force"])


def test_bench_does_not_fill_the_folder_of_the_model_it_reads(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(Path(model).rglob("*"))
    assert cli.main(["bench", "--model", model, *BENCH, "--out", model]) == 2
    assert sorted(Path(model).rglob("*")) == before


def test_report_overwrites_no_folder_of_the_users(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill(tmp_path, **SMALL)
    mine = tmp_path / "report" / "index.html"
    mine.parent.mkdir()
    mine.write_text("mine")
    assert cli.main(["report", str(tmp_path)]) == 2
    assert "or --force" in capsys.readouterr().err and mine.read_text() == "mine"
    assert cli.main(["report", str(tmp_path), "--force"]) == 0 and mine.read_text() != "mine"
    assert cli.main(["report", str(tmp_path)]) == 0, "now it is ours"


def test_a_result_folder_is_known_by_its_mark_or_its_comparison(tmp_path: Path) -> None:
    folder = tmp_path / "results"
    Store(folder).close()  # killed before it had any result
    Store(folder).close()
    fill(tmp_path / "moved", **SMALL)
    (tmp_path / "moved" / FOLDER_MARK).unlink(missing_ok=True)  # copied without hidden files
    Store(tmp_path / "moved").close()


def test_a_fitted_recipe_overwrites_only_one(tmp_path: Path) -> None:
    fit, path = Fit((1.0, 0.5), 0.75, 0.1, 3), tmp_path / "recipe.json"
    fit.save(path)
    fit.save(path)
    path.write_text('{"mine": 1}')
    with pytest.raises(UserError, match="force=True"):
        fit.save(path)
    assert path.read_text() == '{"mine": 1}'
    fit.save(path, force=True)
    assert Fit.load(path) == fit


@pytest.mark.parametrize(
    ("script", "arguments"),
    [
        ("benchmarks/gpu_matrix.py", ["--out", "{file}"]),
        ("training/evaluate.py", ["--model", "llava", "--out", "{file}"]),
        ("training/train.py", ["--model", "llava", "--out", "{folder}"]),
    ],
)
def test_scripts_refuse_too(
    script: str, arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    mine = tmp_path / "llava" / "figures.json"
    mine.parent.mkdir()
    mine.write_text("mine")
    words = [word.format(file=mine, folder=tmp_path) for word in arguments]
    root = Path(__file__).parent.parent
    monkeypatch.syspath_prepend(root / Path(script).parent)
    monkeypatch.setattr(sys, "argv", [script, *words])
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(str(root / script), run_name="__main__")
    assert caught.value.code == 2 and "or --force" in capsys.readouterr().err
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [mine] and mine.read_text() == "mine"
