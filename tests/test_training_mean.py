"""The mean of two exports of one model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from training import mean
from vlmprune.core.errors import UserError


def exported(folder: Path, value: float, width: int = 3) -> Path:
    (folder / "clip").mkdir(parents=True)
    for name in ("model.safetensors", "clip/model.safetensors"):
        save_file({"weight": torch.full((2, width), value, dtype=torch.float16)}, folder / name)
    (folder / "config.json").write_text(f'{{"value": {value}}}')
    return folder


def run(monkeypatch: pytest.MonkeyPatch, *arguments: Path | str) -> None:
    monkeypatch.setattr("sys.argv", ["mean", *map(str, arguments)])
    mean.main()


@pytest.mark.parametrize(("share", "expected"), [(None, 1.5), ("0.25", 1.25)])
def test_every_weight_is_the_mean_and_the_other_files_are_the_later_ones(
    share: str | None, expected: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, after, out = exported(tmp_path / "a", 1.0), exported(tmp_path / "b", 2.0), tmp_path / "out"
    run(monkeypatch, before, after, "--out", out, *(["--share", share] if share else []))
    for name in ("model.safetensors", "clip/model.safetensors"):
        (weight,) = load_file(out / name).values()
        assert weight.dtype == torch.float16 and bool((weight == expected).all())
    assert (out / "config.json").read_text() == '{"value": 2.0}'


def test_models_of_two_shapes_have_no_mean(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before, after = exported(tmp_path / "a", 1.0), exported(tmp_path / "b", 2.0, width=4)
    with pytest.raises(SystemExit):
        run(monkeypatch, before, after, "--out", tmp_path / "out")
    assert "differ in their weights' names or shapes" in capsys.readouterr().err and not (tmp_path / "out").exists()
    with pytest.raises(UserError):
        mean.mean_of({"a": torch.ones(2)}, {"b": torch.ones(2)}, 0.5)


def test_more_than_all_of_the_way_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run(monkeypatch, tmp_path, tmp_path, "--out", tmp_path / "out", "--share", "1.5")
    assert "--share must be from 0 to 1, not 1.5." in capsys.readouterr().err
