"""`vlmprune check METHOD --model MODEL` and `vlmprune check MODEL`: the same checks on a user's model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_folder import save_family, save_llava

from vlmprune.cli import main
from vlmprune.doctor.ground import ground_of
from vlmprune.testing import ADAPTER_CHECKS, CHECKS, run_checks
from vlmprune.testing.check import NOTED, PASSED, SKIPPED

EMBEDDED = ("llava", "qwen2_5_vl")
# What needs to know which patches stand behind a slot, which only tiny models declare; and videos.
TINY_ALONE = {"declared", "grid", "encoder_signals", "video"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Checkpoints of two families with their processors, as a user has them."""
    place = tmp_path_factory.mktemp("models")
    return {"llava": save_llava(place / "llava"), "qwen2_5_vl": save_family("qwen2_5_vl", place / "qwen")}


def outcomes(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, dict[str, Any]]:
    """By name, what each check of a command found; nothing failed."""
    torch.set_num_threads(1)
    code, said = main(["check", *arguments, "--json"]), capsys.readouterr()
    assert code == 0, said.out + said.err
    return {one["check"]: one for one in json.loads(said.out)}


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_every_check_of_a_method_runs_on_a_folder(
    family: str, folders: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    found = outcomes(capsys, "divprune", "--model", str(folders[family]))
    assert set(found) == set(CHECKS)
    left_out = {name: one["text"] for name, one in found.items() if one["status"] != PASSED}
    shape = "pictures of odd shape reach its encoder in the shape of others"
    assert left_out == ({"odd_shape_on_model": shape} if family == "llava" else {})
    assert found["oracle"]["alone"].endswith(f"--only oracle --model {folders[family]}")


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_the_adapter_of_a_folder(family: str, folders: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    found = outcomes(capsys, str(folders[family]))
    assert set(found) == set(ADAPTER_CHECKS)
    left_out = {name for name, one in found.items() if one["status"] == SKIPPED}
    assert left_out == TINY_ALONE | {"odd_shape" if family == "llava" else "projector"}
    assert all("--family" in found[name]["text"] or "videos" in found[name]["text"] for name in TINY_ALONE)
    assert found["slots"]["alone"] == f"vlmprune check {folders[family]} --only slots"


@pytest.mark.parametrize("name", EMBEDDED)
def test_embedded_models(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    chosen = [word for check in ("runs", "oracle", "odd_shape_on_model") for word in ("--only", check)]
    assert outcomes(capsys, "divprune", "--model", name, *chosen)["oracle"]["status"] == PASSED
    assert outcomes(capsys, name, "--only", "parts", "--only", "slots")["slots"]["status"] == PASSED


@pytest.mark.slow
@pytest.mark.parametrize("name", EMBEDDED)
def test_everything_on_embedded_models(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    for method in ("divprune", "fastv", "visionzip"):
        assert set(outcomes(capsys, method, "--model", name)) == set(CHECKS)
    assert set(outcomes(capsys, name)) == set(ADAPTER_CHECKS)


def test_what_cannot_be_compared_is_left_out_and_says_why(folders: dict[str, Path]) -> None:
    """As on a GPU, where a model is loaded in half precision."""
    torch.set_num_threads(1)
    on = ground_of(str(folders["llava"]))
    half = {name: value.bfloat16() if value.is_floating_point() else value for name, value in on.inputs.items()}
    on = replace(on, model=on.model.bfloat16(), inputs=half, unjudged="it needs float32")
    found = {one.check: one for one in run_checks("divprune", [on])}
    left_out = {name for name, one in found.items() if one.status == SKIPPED}
    assert left_out == {"alone", "oracle", "half_precision", "odd_shape_on_model"}
    assert found["oracle"].text == "logits of this model cannot be compared: it needs float32"
    assert {one.status for one in found.values()} == {PASSED, SKIPPED}


def test_a_signal_that_this_picture_does_not_need_is_a_note(folders: dict[str, Path]) -> None:
    """HiRED reads two layers where a picture is cut into tiles; this one may be in one piece."""
    from vlmprune.core.signals import ClsAttention
    from vlmprune.methods.vision.hired import HiRED

    class Both(HiRED):
        def needs(self, info: Any) -> dict[str, Any]:
            return {"early": ClsAttention(0), **super().needs(info)}

    [outcome] = run_checks(Both(), [ground_of(str(folders["llava"]))], ["needs_read"])
    assert outcome.status == NOTED and "other images of this family may need it" in outcome.text
