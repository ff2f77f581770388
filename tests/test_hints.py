"""Advice is followed to the letter, and works: each case makes a mistake, reads the hint and does what it says."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_results import fill
from PIL import Image

import vlmprune
from vlmprune import cli
from vlmprune.core.errors import Option, UserError
from vlmprune.core.recipe import Recipe, make_method, recipe
from vlmprune.core.view import ModelInfo
from vlmprune.methods.decoder.fastv import FastV
from vlmprune.report import build
from vlmprune.testing import FAMILIES, prompt

LLAVA = ModelInfo("llava", encoder_layers=24, decoder_layers=32, has_cls=True)
SMALL: dict[str, Any] = {"models": ["llava"], "methods": ["random"], "keeps": [0.25], "tasks": ["synth-ocr"], "n": 4}


def mistake(spec: Any, info: ModelInfo = LLAVA, **beside: Any) -> UserError:
    with pytest.raises(UserError) as caught:
        checked(spec, info, **beside)
    return caught.value


def checked(spec: Any, info: ModelInfo = LLAVA, **beside: Any) -> Recipe:
    parsed = recipe(spec, **beside)
    parsed.check(info)
    return parsed


def quoted(error: UserError) -> str:
    """The recipe at the end of the hint."""
    return re.findall(r"'([^']+)'", str(error))[-1]


# ---------------------------------------------------------------- recipes


@pytest.mark.parametrize(
    ("wrong", "advised"),
    [
        ("divprune:0.3 > fastv@2:0.3 > dart@2:0.5", "divprune:0.3 > fastv@2:0.3 > dart@3:0.5"),
        ("fastv@2:0.5 > hiprune:0.5", "hiprune:0.5 > fastv@2:0.5"),
        ("fastv@9:0.5 > dart@2:0.5", "dart@2:0.5 > fastv@9:0.5"),
        ("hiprune:0.5 > downsample:0.5", "downsample:0.5 > hiprune:0.5"),
        ("divprune:0.5 > tome(inside=True):0.5", "tome(inside=True):0.5 > divprune:0.5"),
        ("fastv@10:0.5 > pyramiddrop@2,8:0.5", "pyramiddrop@2,8:0.5 > fastv@10:0.5"),
        ("pyramiddrop@2,8:0.5 > fastv@4:0.5", "pyramiddrop@2,8:0.5 > fastv@9:0.5"),
        ("fuse(divprune:0.5)@2 > fastv@2:0.5", "fuse(divprune:0.5)@2 > fastv@3:0.5"),
    ],
)
def test_stages_out_of_order(wrong: str, advised: str) -> None:
    error = mistake(wrong)
    assert wrong in str(error) and quoted(error) == advised
    checked(advised)


@pytest.mark.parametrize(
    "wrong",
    ["fastv@31:0.5 > dart@31:0.5", "downsample:0.5 > downsample:0.5", "hilo@2,4:0.5 > pyramiddrop@2,4:0.5"],
)
def test_of_stages_that_no_order_helps_one_is_left_out(wrong: str) -> None:
    assert "leave one of them out" in str(mistake(wrong))
    for stage in recipe(wrong).stages:
        checked(stage)


def test_who_shares_a_layer_is_named() -> None:
    said = str(mistake("divprune:0.3 > fastv@2:0.3 > dart@2:0.5"))
    assert "fastv@2 and dart@2 both act before decoder layer 2" in said


@pytest.mark.parametrize(
    "text", ["fastv@5", "hiprune(alpha=0.2)", "fuse(divprune)@2", "vtw", "pyramiddrop@4,8", " sparsevlm ", "fastv"]
)
def test_a_missing_budget_of_a_method(text: str) -> None:
    error = mistake(text)
    advised = re.search(r"give keep=([\d.]+), or write it in the recipe as (.+)\.$", str(error))
    assert advised is not None and advised[2].startswith(text.strip()), "what the user wrote is there"
    assert checked(advised[2]) == checked(text, keep=float(advised[1]))


def test_a_missing_budget_beside_options_and_of_an_object() -> None:
    assert "as fastv:0.222" in str(mistake("fastv", layer=5))
    checked("fastv:0.222", layer=5)
    said = str(mistake(FastV(layer=5)))
    assert said == "fastv@5 needs a budget: give keep=0.222."
    checked(FastV(layer=5), keep=0.222)


def test_vtw_says_what_its_budget_is() -> None:
    assert "the share of layers that see the image" in str(mistake("vtw"))
    assert "give 0.5" in str(mistake("vtw:64"))
    checked("vtw:0.5")


@pytest.mark.parametrize(
    ("wrong", "advised"),
    [
        ("hiprune > fastv@2:0.5", "hiprune:0.222 > fastv@2:0.5"),
        ("hiprune(alpha=0.2)>fastv@3", "hiprune(alpha=0.2):0.222 > fastv@3:0.222"),
        ("visionzip-64 > fastv@3", "visionzip-64 > fastv@3:0.222"),
        ("fuse(divprune)@2 > fastv@4:0.5", "fuse(divprune)@2:0.222 > fastv@4:0.5"),
    ],
)
def test_a_missing_budget_in_a_chain(wrong: str, advised: str) -> None:
    error = mistake(wrong)
    assert quoted(error) == advised and "keep" not in str(error)
    checked(advised)


def test_a_budget_beside_a_chain() -> None:
    error = mistake("hiprune > fastv@2:0.5", keep=0.3)
    assert quoted(error) == "hiprune:0.3 > fastv@2:0.5" and "instead of keep=0.3" in str(error)
    checked(quoted(error))
    assert "leave out keep=0.3" in str(mistake("hiprune:0.1 > fastv@2:0.5", keep=0.3))
    checked("hiprune:0.1 > fastv@2:0.5")


@pytest.mark.parametrize(
    ("spec", "beside"),
    [
        ("", {}),
        ("hiprune:0.5 > fastv@2:0.5", {"layer": 3}),
        ("fuse(selector=3):0.1", {}),
    ],
)
def test_an_example_in_a_hint_is_a_recipe(spec: str, beside: dict[str, Any]) -> None:
    example = re.search(r"as in '?([^']+?)'?\.$", str(mistake(spec, **beside)))
    assert example is not None
    checked(example[1])


def test_the_example_of_a_stage() -> None:
    assert str(mistake("hiprune:0.5:0.5")).endswith("as in fastv@2:0.333.")
    checked("fastv@2:0.333")


def test_a_budget_written_with_the_inner_method() -> None:
    with pytest.raises(UserError, match=re.escape("in a recipe, fuse(divprune:0.1), or beside it")):
        make_method("fuse", {"selector": "divprune:0.1"})
    checked("fuse(divprune:0.1)")
    checked(recipe(make_method("fuse", {"selector": "divprune"}), keep=0.1))


def test_a_budget_that_is_none_of_its_business() -> None:
    assert "leave it out" in str(mistake("vtw@2:0.5"))
    checked("vtw@2")


@pytest.mark.parametrize("text", ["0", "7.5", "half", "-1", "nan"])
def test_a_wrong_budget_is_quoted_as_it_was_written(text: str) -> None:
    said = str(mistake(f"hiprune:{text}"))
    assert said.startswith(f"'{text}' is not a budget")
    for advised in re.findall(r"\(([\d.]+)\)", said):
        checked(f"hiprune:{advised}")


@pytest.mark.parametrize(("wrong", "advised"), [("fastw@3:0.5", "fastv"), ("visionzip-65", "visionzip-64")])
def test_a_name_that_is_nearly_right(wrong: str, advised: str) -> None:
    error = mistake(wrong)
    assert quoted(error) == advised
    checked(re.sub(r"^[\w-]+", advised, wrong))


@pytest.mark.parametrize("family", [LLAVA, ModelInfo("qwen2_5_vl", 32, 28, False), ModelInfo("llava", 5, 5, True)])
@pytest.mark.parametrize("method", ["fastv(average=True)@{}", "pyramiddrop(average=True)@{}"])
@pytest.mark.parametrize("layer", [1, 2, 3, 4])
def test_an_average_that_cannot_be_met(method: str, layer: int, family: ModelInfo) -> None:
    text, keep = method.format(layer), layer / family.decoder_layers
    said = str(caught_at_budget(f"{text}:{keep}", family))
    least = re.search(r"a budget of ([\d.]+) or more", said)
    assert least is not None
    budget_of(f"{text}:{least[1]}", family)
    assert ("or an earlier layer" in said) == (layer > 1)
    if layer > 1:
        budget_of(f"{method.format(layer - 1)}:{keep}", family)


def caught_at_budget(text: str, info: ModelInfo) -> UserError:
    with pytest.raises(UserError) as caught:
        budget_of(text, info)
    return caught.value


def budget_of(text: str, info: ModelInfo) -> int:
    return recipe(text).on(info).acts[0].budget(576, 576)


def test_a_method_behind_one_that_merges() -> None:
    model, inputs = FAMILIES["llava"].build(), prompt(FAMILIES["llava"], [[0]])
    with torch.no_grad():
        said = "only drops them, such as divprune"
        with pytest.raises(UserError, match=said) as caught, vlmprune.prune(model, "visionzip:0.5 > hiprune:0.5"):
            model(**inputs)
        assert str(caught.value).startswith("hiprune")
        with vlmprune.prune(model, "divprune:0.5 > hiprune:0.5"):
            model(**inputs)


# ---------------------------------------------------------------- the command line


def said(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> str:
    assert cli.main(arguments) == 2
    return capsys.readouterr().err


@pytest.fixture
def photo(tmp_path: Path) -> str:
    Image.new("RGB", (40, 40), "green").save(tmp_path / "photo.png")
    return str(tmp_path / "photo.png")


@pytest.mark.parametrize(
    ("arguments", "advised"),
    [
        (["--method", "fastv@2"], "give --keep 0.222, or write it in the recipe as fastv@2:0.222"),
        (["--method", "divprune:0.5", "--keep", "0.4"], "and as --keep 0.4: give one."),
        (["--method", "divprune > fastv@2", "--keep", "0.4"], "instead of --keep 0.4."),
        (["--keep", "0.4"], "--keep 0.4 prunes nothing without a method: add one, such as --method hiprune."),
        (["--overlay", "o.png"], "add --method hiprune and --keep 0.222."),
        (["-q", " "], "such as --question 'What is this?'."),
    ],
)
def test_the_command_line_speaks_of_its_own_options(
    arguments: list[str], advised: str, photo: str, capsys: pytest.CaptureFixture[str]
) -> None:
    err = said(capsys, ["run", photo, "-q", "What is it?", *arguments])
    assert advised in err and "keep=" not in err


@pytest.mark.parametrize(
    "arguments",
    [
        ["--method", "fastv@2", "--keep", "0.222"],
        ["--method", "fastv@2:0.222"],
        ["--keep", "0.4", "--method", "hiprune"],
    ],
)
def test_and_they_work(arguments: list[str], photo: str) -> None:
    assert cli.main(["run", photo, "-q", "What is it?", *arguments]) == 0


def test_positions_of_bench(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--positions best is not a policy" in said(capsys, ["bench", "--positions", "best", "--out", str(tmp_path)])


def test_list_methods_lists(capsys: pytest.CaptureFixture[str]) -> None:
    err = str(mistake("zzzzzz:0.5"))
    command = re.search(r"`vlmprune ([^`]+)`", err)
    assert command is not None and cli.main(command[1].split()) == 0


@pytest.mark.parametrize(("name", "exists"), [("new", False), ("a folder", True)])
def test_the_command_that_makes_results_makes_them_where_they_were_missed(
    name: str, exists: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / name
    if exists:
        folder.mkdir()
    err = said(capsys, ["report", str(folder)])
    hinted = re.search(r"`vlmprune (bench[^`]+)`", err)
    assert hinted is not None and follow_bench(hinted[1], monkeypatch) == folder
    assert cli.main(["report", str(folder)]) == 0


def follow_bench(command: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Run the command with runs that are made up; the folder it filled."""
    filled: list[Path] = []

    def run_bench(plan: Any, out: Path, *_: Any, **__: Any) -> None:
        fill(out, **SMALL)
        filled.append(out)

    monkeypatch.setattr("vlmprune.bench.runner.run_bench", run_bench)
    assert cli.main(shlex.split(command)) == 0
    return filled[0]


def test_a_file_and_a_foreign_folder_are_not_advised_to_be_filled(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    assert "is not a result folder" in said(capsys, ["report", str(tmp_path)])
    assert "is a file" in said(capsys, ["report", str(tmp_path / "notes.txt")])


def test_a_broken_comparison_is_deleted_and_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(tmp_path, **SMALL)
    (tmp_path / "comparison.json").write_text("{")
    err = said(capsys, ["report", str(tmp_path)])
    assert "delete it" in err
    (tmp_path / "comparison.json").unlink()
    hinted = re.search(r"`vlmprune (bench[^`]+)`", err)
    assert hinted is not None and follow_bench(hinted[1], monkeypatch) == tmp_path
    build(tmp_path)


def test_an_option_in_two_languages() -> None:
    tower, force = Option("text_tower", "clip"), Option("force", True)
    error = UserError("Give ", tower, " or ", force, ", not ", Option("keep"), ".")
    assert str(error) == "Give text_tower='clip' or force=True, not keep."
    assert error.typed == "Give --text-tower clip or --force, not --keep."
