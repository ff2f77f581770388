"""The survey of image-text types: what is stored is what is found, and no type of transformers is left out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from vlmprune.cli import main
from vlmprune.doctor import survey as surveys
from vlmprune.doctor.methods import Wrong
from vlmprune.doctor.survey import survey
from vlmprune.models import FAMILIES, adapter_for
from vlmprune.models.surveyed import FILE, NEW, PROVED, REFUSED, UNPROVED, Surveyed, image_text_types, surveyed
from vlmprune.testing.guessed import inputs_for
from vlmprune.testing.shrunk import build

FEW = ("deepseek_vl", "glm5_next", "blip-2", "fast_vlm")  # one of each class
HERE = json.loads(FILE.read_text(encoding="utf-8"))["transformers"] == transformers.__version__
stored_here = pytest.mark.skipif(not HERE, reason="the survey was made with another version of transformers")


@stored_here
def test_every_image_text_type_has_a_class() -> None:
    assert {*image_text_types()} <= {*surveyed(), *FAMILIES} and not {*surveyed()} & {*FAMILIES}
    assert {found.verdict for found in surveyed().values()} >= {PROVED, REFUSED, UNPROVED}
    assert all(found.words and "\n" not in found.words for found in surveyed().values())


@stored_here
@pytest.mark.parametrize("name", FEW)
def test_what_is_stored_is_what_is_found(name: str) -> None:
    assert survey(name) == surveyed()[name]


@stored_here
@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in surveyed() if name not in FEW])
def test_what_is_stored_of_all_others_is_what_is_found(name: str) -> None:
    assert survey(name).verdict == surveyed()[name].verdict


def test_a_type_that_is_new_appears_by_itself(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any) -> None:
    """Where the survey was made with a transformers that did not have it."""
    older = tmp_path / "surveyed.json"
    older.write_text(json.dumps({"transformers": "5.0.0", "types": {}}), encoding="utf-8")
    with monkeypatch.context() as patched:
        patched.setattr("vlmprune.models.surveyed.FILE", older)
        surveyed.cache_clear()
        assert surveyed()["deepseek_vl"] == Surveyed(UNPROVED, NEW)
        assert main(["list", "models"]) == 0
    surveyed.cache_clear()
    assert NEW in capsys.readouterr().out


def test_a_wrong_answer_is_no_class(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model whose pruned generation is not what the oracle says is a defect, not an entry of the table."""
    monkeypatch.setattr("vlmprune.doctor.proof.difference", lambda *both: ("largest difference 1", False))
    with pytest.raises(Wrong, match=r"deepseek_vl: random:0\.5"):
        surveys.survey("deepseek_vl")


@torch.no_grad()
def test_a_tiny_model_is_tiny_and_has_every_kind_of_layer() -> None:
    model = build("cohere2_vision")
    adapter = adapter_for(model)
    assert sum(parameter.numel() for parameter in model.parameters()) < 1_000_000
    kinds = {adapter.layer_kind(layer) for layer in range(len(adapter.decoder_layers))}
    assert kinds == {"sliding_attention", "full_attention"}
    inputs = inputs_for(adapter)
    slots = int((inputs["input_ids"] == adapter.placeholder_ids["image"]).sum())
    assert slots > 1 and model(**inputs).logits.shape[1] == inputs["input_ids"].shape[1]
