"""`vlmprune run` with several methods, budgets and pictures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from tiny_folder import save_llava

from vlmprune import cli
from vlmprune.ask.run import recipes_of


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_llava(tmp_path_factory.mktemp("model")))


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name, size in (("a.png", (64, 64)), ("b.jpg", (90, 60))):
        Image.new("RGB", size, "white").save(folder / name)
    return folder


def test_several_methods_and_budgets(model: str, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sheet = pictures.parent / "sheet.png"
    asked = [
        "run",
        str(pictures / "a.png"),
        "-q",
        "what color is the ring ?",
        "--model",
        model,
        "--overlay",
        str(sheet),
    ]
    methods = [
        "--methods",
        "divprune,pool,random:4",
        "--keep",
        "0.5,0.25",
        "--max-new-tokens",
        "3",
        "--dtype",
        "bfloat16",
    ]
    assert cli.main([*asked, *methods, "--json"]) == 0
    [found] = json.loads(capsys.readouterr().out)
    assert [one["recipe"] for one in found["answers"]] == [
        None, "divprune:0.5", "divprune:0.25", "pool:0.5", "pool:0.25", "random:4",
    ]  # fmt: skip
    assert all(one["visual_tokens"]["after"] < one["visual_tokens"]["before"] for one in found["answers"][1:])
    with Image.open(sheet) as drawn:
        assert drawn.width > 3 * 224


def test_each_picture_of_a_folder(model: str, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = [
        "run",
        str(pictures),
        "--each",
        "-q",
        "what color is the ring ?",
        "--model",
        model,
        "--max-new-tokens",
        "3",
    ]
    drawn = pictures.parent / "drawn"
    assert cli.main([*asked, "--method", "pool", "--keep", "0.5", "--compare", "--overlay", str(drawn)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith(str(pictures))] == [str(pictures / n) for n in ("a.png", "b.jpg")]
    assert sum(line.startswith("unpruned") for line in lines) == sum(line.startswith("pool:0.5") for line in lines) == 2
    assert {path.name for path in drawn.glob("*.png")} == {"a.png.png", "b.jpg.png"}


def test_a_method_that_carries_its_budget_is_asked_once() -> None:
    assert [str(one) for one in recipes_of(["random:4", "divprune"], [0.5, 9])] == [
        "random:4",
        "divprune:0.5",
        "divprune:9",
    ]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ("--method pool --methods pool --keep 0.5", "both name methods"),
        ("--compare", "--compare needs a method"),
        ("--methods pool --keep 0.5,", "empty budget"),
        ("--methods pool,nothing --keep 0.5", "There is no method 'nothing'"),
        ("--dtype int8", "--dtype int8 is not a type of numbers"),
        ("--each", "--each is for folders"),
        ("b.jpg --method pool --keep 0.5 --overlay x.png", "give a folder for the overlays"),
        ("missing.png --method pool --keep 0.5", "no picture"),
    ],
)
def test_mistakes(options: str, sentence: str, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [str(pictures / word) if word == "b.jpg" else word for word in options.split()]
    assert cli.main(["run", str(pictures / "a.png"), "-q", "what is it ?", *words]) == 2
    assert sentence in capsys.readouterr().err
