"""benchmarks/gpu.py in a dry run: every script of benchmarks/ that it calls, on tiny models."""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parent.parent
FOLDERS = [str(ROOT / "benchmarks"), str(ROOT / "tools")]
ROWS = {
    "prefill": {"ratio", "noise", "target", "unpruned"},
    "scoring": {"share", "eager_share", "noise", "target"},
    "decoding": {"ratio", "noise", "target"},
    "scaling": {"ratio", "limit", "noise"},
    "memory": {"peak", "kv"},
}


@pytest.fixture(scope="module")
def gpu() -> Iterator[Any]:
    sys.path[:0] = FOLDERS
    try:
        yield importlib.import_module("gpu")
    finally:
        for folder in FOLDERS:
            sys.path.remove(folder)


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="what it does on a CPU")
def test_a_dry_run_writes_the_figures_of_every_part(
    gpu: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = [part.name for part in gpu.PARTS if part.name != "matrix"]  # tests/test_devices.py runs that
    assert gpu.main(["--dry-run", "--out", str(tmp_path), "--parts", ",".join(parts)]) == 0
    shown = capsys.readouterr().out
    assert all(f"{name}: done" in shown for name in parts)
    for name, fields in ROWS.items():
        made = json.loads((tmp_path / f"gpu-{name}.json").read_text())
        assert made["rows"] and fields <= made["rows"][-1].keys(), name
        assert made["machine"]["device"].startswith("cpu: ")
    pruned = json.loads((tmp_path / "gpu-prefill.json").read_text())["rows"][1:]
    assert [row["tokens"] for row in pruned] == [64 + 40, 64 + 40]
    decoded = json.loads((tmp_path / "gpu-decoding.json").read_text())["rows"]
    assert decoded[0]["stored"][0] == 616 > decoded[0]["stored"][-1]
    selected = json.loads((tmp_path / "gpu-selecting.json").read_text())
    assert selected["hilo"] and {row["way"] for row in selected["loops"]} == {"numpy", "many at once"}
    tables = importlib.import_module("docs_speed")._selectors(selected)
    assert "| max-min | 32 of 100 > 11 |" in tables and "| volume | 8 of 100 > 11 |" in tables


def test_a_part_that_fails_or_takes_too_long_stops_no_other(
    gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(arguments: list[str]) -> None:
        raise RuntimeError("no kernel")

    def slow(arguments: list[str]) -> None:
        try:
            time.sleep(30)
        except Exception:  # as parts record what a check raised
            pytest.fail("the time limit was taken for a failure of the part")

    made = []
    parts = [
        gpu.Part("one", 9, broken, "", ""),
        gpu.Part("two", 1, slow, "", ""),
        gpu.Part("three", 9, made.append, "", ""),
    ]
    monkeypatch.setattr(gpu, "PARTS", parts)
    assert gpu.main(["--dry-run", "--out", str(tmp_path)]) == 1
    shown = capsys.readouterr().out
    assert "one: failed" in shown and "two: stopped after 1 s" in shown and "three: done" in shown
    assert made == [["--device", "cpu", "--out", str(tmp_path / "gpu-three.json")]]
    assert gpu.main(["--dry-run", "--out", str(tmp_path), "--minutes", "0"]) == 1
    assert "three: not begun" in capsys.readouterr().out


def test_unknown_parts_and_a_missing_gpu_are_said(gpu: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        gpu.main(["--parts", "prefil", "--dry-run", "--out", str(tmp_path)])
    assert "there is no part 'prefil'" in capsys.readouterr().err
    if not torch.cuda.is_available():
        with pytest.raises(SystemExit):
            gpu.main(["--out", str(tmp_path)])
        assert "add --dry-run" in capsys.readouterr().err


def test_the_parts_fit_into_nine_minutes_but_for_the_last(gpu: Any) -> None:
    assert sum(part.limit for part in gpu.PARTS[:6]) <= 9 * 60
