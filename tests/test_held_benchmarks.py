"""benchmarks/fusion.py and anatomy.py on made-up figures, and the tables that pages make of them."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_results import fill

from vlmprune.bench.compare import build_tables
from vlmprune.bench.store import Run
from vlmprune.data.sample import Sample

ROOT = Path(__file__).parent.parent


def load(folder: str, name: str) -> Any:
    if str(ROOT / folder) not in sys.path:
        sys.path.append(str(ROOT / folder))
    path = ROOT / folder / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def fusion() -> Any:
    return load("benchmarks", "fusion")


def test_table_9_is_among_the_rows_and_each_is_held_against_itself_unfused(fusion: Any) -> None:
    rows = fusion.rows()
    strengths = [row.recipe for row in rows if row.what == "strength" and row.recipe.endswith(":0.2")]
    assert strengths == ["hilo(lambda_=0.1):0.2", "hilo:0.2", "hilo(lambda_=0.5):0.2", "hilo(lambda_=1.0):0.2"]
    assert len(rows) == len(set(rows)) and all(row.recipe != row.against for row in rows)
    against = {row.recipe: row.against for row in rows}
    assert against["hilo:0.2"] == against["hilo(lambda_=1.0):0.2"] == "hilo(lambda_=0):0.2"
    assert against["hilo@4:0.1"] == "hilo(lambda_=0)@4:0.1"
    assert against["hilo(tau=0.2):0.1"] == "hilo(lambda_=0, tau=0.2):0.1"
    parts = [row for row in rows if row.what.endswith("alone")]
    assert len(parts) == 4 and all("lambda_=0" in row.recipe and "share" not in row.against for row in parts)


def test_the_change_is_paired(fusion: Any, tmp_path: Path) -> None:
    def reply(run: Run, sample: Sample) -> str:
        number = int(sample.id[-5:])
        wrong = {"vanilla": 0, "hilo": 10, "hilo(lambda_=0)": 14}[run.method]
        return "none" if number < wrong else sample.answers[0]

    fill(tmp_path, ["llava"], ["hilo", "hilo(lambda_=0)"], [0.2], tasks=["synth-ocr"], n=40, reply=reply)
    (table,) = build_tables(tmp_path)
    same = fusion.Held("nothing", "hilo:0.2", "hilo:0.2")
    held = fusion.Held("strength", "hilo:0.2", "hilo(lambda_=0):0.2")
    found = load("benchmarks", "held").accuracy(table, [held, same])
    first, second = found["rows"]
    assert found["vanilla"] == 100 and (first["mean"], first["against_mean"]) == (75, 65)
    value, low, high = first["change"]
    assert value == 10 and -5 < low < 10 < high < 30, "the four questions that differ, and no others"
    value, low, high = second["change"]
    assert value == 0 and low < 0 < high, "equal answers are no proof of no difference"


def test_what_a_model_alone_cannot_do_is_left_out(fusion: Any, tmp_path: Path) -> None:
    held = load("benchmarks", "held")
    asked = [held.Held("a", "uniform:0.5", "random:0.5"), held.Held("b", "tome(inside=True):0.5", "uniform:0.5")]
    (found,) = held.accuracies(tmp_path / "runs", 2, asked, ("qwen2_5_vl",)).values()
    assert [row["what"] for row in found["rows"]] == ["a"], "its encoder puts patches together"


def test_a_distance_that_falls_is_nearer(fusion: Any) -> None:
    pairs = np.array([[1.0, 2.0], [2.0, 2.0], [1.0, 2.0], [3.0, 2.0]])
    found = fusion.summary(pairs)
    assert (found["questions"], found["nearer"], found["mean"], found["against_mean"]) == (4, 2, 1.75, 2)
    value, low, high = found["change"]
    assert value == -12.5 and low < value < high


def test_the_page_takes_its_tables_from_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "tools")
    docs = load("tools", "docs_fusion")
    row = {"what": "strength", "recipe": "hilo:0.2", "against": "hilo(lambda_=0):0.2", "mean": 91.26}
    accurate = row | {"against_mean": 90.0, "change": [1.26, 0.5, 2.0]}
    distant = row | {"mean": 4.0, "against_mean": 4.2, "change": [-4.76, -6.0, 0.2], "questions": 24, "nearer": 15}
    path = tmp_path / "fusion.json"
    figures: dict[str, Any] = {"questions": 8, "accuracy": {}, "distance": {"llava": [distant]}}
    path.write_text(json.dumps(figures))
    assert docs.NOT_MEASURED in docs.fusion(path)
    figures["accuracy"] = {"llava": {"vanilla": 99.0, "tasks": ["synth-ocr"], "rows": [accurate]}}
    path.write_text(json.dumps(figures))
    text = docs.fusion(path)
    named = "| `llava` | strength | `hilo:0.2` | `hilo(lambda_=0):0.2` |"
    assert f"{named} 91.3 | 90.0 | +1.3 [+0.5, +2.0] |" in text
    assert f"{named} 4.00 | 4.20 | −4.8 % [−6.0, +0.2] | 15 of 24 |" in text
    assert "Of 1 changes, 1 are above and 0 below zero" in text and "Of 1 changes, 0 are above and 0 below" in text


def test_every_comparison_of_the_anatomy_can_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = load("benchmarks", "anatomy").rows()
    assert len(rows) == len(set(rows)) and all(one.sides[0] != one.sides[1] for one in rows)
    docs = load("tools", "docs_anatomy")
    figures = [row._asdict() | {"mean": 80.0, "against_mean": 70.0, "change": [10.0, 4.0, 16.0]} for row in rows]
    path = tmp_path / "anatomy.json"
    assert docs.ablations(path) == docs.NOT_MEASURED
    models = {"llava": {"vanilla": 98.0, "rows": figures}, "qwen2_5_vl": {"vanilla": 98.0, "rows": figures[1:]}}
    path.write_text(json.dumps({"questions": 8, "accuracy": models}))
    text = docs.ablations(path)
    assert "| `uniform:0.222` | `random:0.222` | 80.0 | **+10.0 [+4.0, +16.0]** | – | – |" in text
    assert "| `random:0.111`, compact | `random:0.111`, original | 80.0 |" in text
