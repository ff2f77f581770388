"""The papers' figures beside measured ones: what agrees, what does not, and what is known to be wrong with them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fake_results import fill

from vlmprune import published
from vlmprune.bench.compare import tables_of
from vlmprune.bench.store import load_results
from vlmprune.bench.table import Table
from vlmprune.cli import main
from vlmprune.core.recipe import lacks_budget, recipe
from vlmprune.published import VANILLA, facts, is_model, standard
from vlmprune.report.beside import beside, beside_csv, beside_markdown

HUB = "llava-hf/llava-1.5-7b-hf"


def measured(folder: Path, model: str = HUB, task: str = "pope", protocol: str = "lmms") -> list[Table]:
    """A result folder as if POPE had been run."""
    fill(folder, models=[model], methods=["hiprune", "divprune"], keeps=[192, 1 / 3, 64], tasks=["synth-pope"], n=24)
    for path in folder.glob("runs/*/*/*.json"):
        content = json.loads(path.read_text())
        content["run"] |= {"task": task, "protocol": protocol}
        path.write_text(json.dumps(content))
    (folder / "comparison.json").unlink()
    return tables_of(load_results(folder, every=True))


def test_what_agrees_is_put_beside(tmp_path: Path) -> None:
    pairs = beside(measured(tmp_path))
    found = {(pair.row.recipe, pair.fact.printed.table): pair for pair in pairs}
    assert {pair.fact.printed.source for pair in pairs} == {"HiPrune"}
    assert ("vanilla", "2") in found and ("hiprune:192", "2") in found and ("hiprune:64", "2") in found
    assert not any(pair.row.method == "divprune" for pair in pairs), "this paper does not print it"
    pair = found["hiprune:192", "2"]
    assert pair.fact.printed.budget == "192 tokens" and pair.fact.printed.metric == "POPE"
    assert pair.difference == pytest.approx(pair.row.cells["pope"].value.value - pair.fact.printed.value)
    assert pair.notes[0] == "measured on 24 of 9000 questions"
    text = beside_markdown(pairs)
    assert f"## {HUB}" in text and "| hiprune | 192 tokens | HiPrune, table 2 | POPE | 24 |" in text
    assert beside_csv(pairs).count("\n") == len(pairs) + 1


@pytest.mark.parametrize(
    "other",
    [{"model": "llava"}, {"model": "llava-hf/llava-1.5-9b-hf"}, {"task": "gqa-pope"}, {"protocol": "vlmevalkit2"}],
)
def test_what_differs_in_one_thing_is_not(other: dict[str, str], tmp_path: Path) -> None:
    assert beside(measured(tmp_path, **other)) == []


def test_nothing_that_agrees_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill(tmp_path, models=["llava"], methods=["random"], keeps=[0.5], tasks=["synth-ocr"], n=4)
    assert main(["report", str(tmp_path), "--published"]) == 0
    assert capsys.readouterr().out.startswith("Nothing measured here agrees")
    assert main(["report", str(tmp_path)]) == 0
    assert not (tmp_path / "report" / "published.md").exists(), "what was not asked for does not go stale"


def test_the_mapping_names_what_is_there() -> None:
    """Every recipe of ours in it exists, and every paper's name in it is printed somewhere."""
    for fact in facts():
        if fact.method != VANILLA:
            recipe(fact.method, keep=0.5) if lacks_budget(fact.method) else recipe(fact.method)
    rows = published.read_rows("results")
    for name, column in (("methods", "method"), ("tasks", "metric")):
        for entry in published.read_rows(name):
            assert any(published.holds(entry, row, column) for row in rows), entry
    for entry in published.read_rows("notes"):
        assert any(all(v in ("", row[k]) for k, v in entry.items() if k != "note") for row in rows), entry
    assert all(any(row["model"] == entry["model"] for row in rows) for entry in published.read_rows("models"))


def test_models_by_hub_id_folder_and_printed_name() -> None:
    for name in (HUB, "/models/llava-1.5-7b-hf", "LLaVA-1.5-7B"):
        assert is_model(name, "LLaVA-1.5-7B")
    assert not is_model("llava", "LLaVA-1.5-7B") and not is_model(HUB, "LLaVA-1.5-13B")


def test_recipes_are_compared_in_standard_spelling() -> None:
    assert standard("fastv") == "fastv@2" and standard("vanilla") == VANILLA
    assert standard("random:0.333>fastv:0.333") == "random:0.333 > fastv@2:0.333"


def test_known_errors_come_with_the_value() -> None:
    vizwiz = [f for f in facts() if (f.printed.source, f.printed.table, f.printed.metric) == ("HiPrune", "2", "VizWiz")]
    assert vizwiz and all(any("unpruned 50.0" in note for note in fact.notes) for fact in vizwiz)
