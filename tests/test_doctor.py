"""`vlmprune doctor`: what it says of a model is measured on that model."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from tiny_folder import save_llava

import vlmprune
from vlmprune.core.view import Grid
from vlmprune.doctor import diagnose, draw_grid


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llava(tmp_path_factory.mktemp("model"))


def test_report_of_a_folder(folder: Path) -> None:
    text = diagnose(str(folder))
    assert "LlavaForConditionalGeneration (family llava)" in text
    assert "3 layers, the projector reads layer 1; with a CLS token" in text
    assert "49 visual tokens" in text and "slot grid 7 x 7" in text
    drawing = [line for line in text.splitlines() if re.fullmatch(r"  [#.]( [#.]){6}", line)]
    assert len(drawing) == 7 and "".join(drawing).count("#") == 24
    for name in vlmprune.METHODS:
        assert re.search(rf"^  {re.escape(name)} +works: 49 -> \d+ tokens", text, re.MULTILINE)
    assert "bit for bit" in text
    found = re.search(r"largest difference (\S+) on logits", text)
    assert found is not None and float(found[1]) < 2e-4


def test_the_proof_can_fail(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With positions counted wrongly the difference to the oracle shows."""
    original = vlmprune.prune

    def compact(model: torch.nn.Module, method: object, keep: object = None, **options: object) -> object:
        return original(model, method, keep, **({**options, "positions": "compact"}))  # type: ignore[arg-type]

    monkeypatch.setattr("vlmprune.doctor.vlmprune.prune", compact, raising=False)
    found = re.search(r"largest difference (\S+) on logits", diagnose(str(folder)))
    assert found is not None and float(found[1]) > 2e-3


def test_embedded_models() -> None:
    for name in ("llava", "qwen2_5_vl"):
        text = diagnose(name)
        found = re.search(r"largest difference (\S+) on logits", text)
        assert "bit for bit" in text and found is not None and float(found[1]) < 2e-4


def test_drawing() -> None:
    assert list(draw_grid(Grid(2, 3), torch.tensor([0, 5]))) == ["  # . .", "  . . #"]


def test_unknown_model() -> None:
    with pytest.raises(vlmprune.UserError):
        diagnose("no-such-model")
