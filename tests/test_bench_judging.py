"""Runs whose replies a judge scores: not measured without one, and later read from the verdicts beside the records."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
from fake_results import make_run
from judge_server import judge_server

from vlmprune import cli
from vlmprune.bench.batch import NO_TOKENS, record_of
from vlmprune.bench.compare import build_tables
from vlmprune.bench.judging import CACHE, judge_for, judge_results
from vlmprune.bench.store import VANILLA, Store, load_records, load_results
from vlmprune.bench.verdicts import UNREADABLE, verdicts_path
from vlmprune.core.errors import UserError
from vlmprune.data.sample import Sample
from vlmprune.report import build
from vlmprune.scoring.metrics import JUDGED_ACCURACY
from vlmprune.tasks.data_task import DataTask

TASK = DataTask(
    name="videos", dimension="video", summary="made up", metric=JUDGED_ACCURACY, chance=0.0, kind="judged-video"
)
SAMPLES = [Sample(f"videos/{k}", f"What is it, {k}?", "judged-video", ("a dog",), group=f"videos/{k}") for k in "1234"]
REPLIES = {VANILLA: ("a puppy", "a dog", "a hound", ""), "divprune": ("a puppy", "a cat", "a fox", "")}


def fill(folder: Path, replies: dict[str, Sequence[str]]) -> None:
    with Store(folder) as store:
        runs = []
        for method, said in replies.items():
            run = make_run("llava", TASK, SAMPLES, method, 1.0 if method == VANILLA else 0.5)
            counts = {**NO_TOKENS, "input_tokens": 9, "visual_before": 8, "visual_kept": 8, "visual_entering": 8.0}
            store.append(run, [record_of(one, reply, one.kind, **counts) for one, reply in zip(SAMPLES, said)])
            about = {"dimension": "video", "metric": TASK.metric.name, "chance": 0.0, "shape": None, "made": {}}
            store.finish(run, **about)
            runs.append(run)
        store.compare(runs)


def says(prompt: str) -> str:
    right = any(word in prompt.partition("Model's answer:")[2].partition("\n")[0] for word in ("dog", "puppy", "hound"))
    return f'{{"pred": "{"yes" if right else "no"}", "score": {5 if right else 1}}}'


def test_without_a_judge_nothing_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill(tmp_path, REPLIES)
    first = load_results(tmp_path)[0]
    assert (
        "NaN" not in first.records_path.read_text()
        and json.loads(first.records_path.open().readline())["score"] is None
    )
    records = load_records(first)
    assert [math.isnan(record.score) for record in records] == [True, True, True, False]  # an empty reply needs none
    table = build_tables(tmp_path)[0]
    assert table.averaged == () and "not measured" in table.left_out["videos"]
    assert all(math.isnan(row.cells["videos"].value.value) and row.cells["videos"].unmeasured for row in table.rows)
    build(tmp_path)
    for name in ("summary.md", "summary.tex", "index.html"):
        assert "not measured" in (tmp_path / "report" / name).read_text(), name
    with (tmp_path / "report" / "summary.csv").open() as file:
        for row in csv.DictReader(file):
            assert [row[name] for name in ("value", "low", "high", "ratio", "difference", "unparsed")] == [""] * 6


def test_verdicts_are_kept_and_read_without_the_judge(tmp_path: Path) -> None:
    fill(tmp_path, REPLIES)
    with judge_server(says) as server:
        judge = judge_for(server.url, "m", tmp_path / CACHE)
        assert judge is not None
        judge_results(load_results(tmp_path), judge)
        assert len(server.asked) == 5  # "a puppy" to the first question came twice
    assert cli.main(["report", str(tmp_path)]) == 0  # the server is gone
    table = build_tables(tmp_path)[0]
    cells = {row.method: row.cells["videos"] for row in table.rows}
    assert cells[VANILLA].value.value == 75 and cells["divprune"].value.value == 25
    assert cells[VANILLA].details == {"rating": 5.0} and "Judged by m: videos." in table.notes()
    text = (tmp_path / "report" / "summary.md").read_text()
    assert "not measured" not in text and "Judged by m: videos." in text


def test_a_verdict_on_another_reply_does_not_count(tmp_path: Path) -> None:
    fill(tmp_path, REPLIES)
    first = load_results(tmp_path)[0]
    with judge_server(says) as server:
        judge = judge_for(server.url, "m", tmp_path / CACHE)
        assert judge is not None
        judge_results([first], judge)
    assert not any(math.isnan(record.score) for record in load_records(first))
    path = first.records_path
    path.write_text(path.read_text().replace("a hound", "a horse"))
    assert [math.isnan(record.score) for record in load_records(first)] == [False, False, True, False]
    verdicts_path(path).write_text("broken\n[]\n")
    assert [math.isnan(record.score) for record in load_records(first)] == [True, True, True, False]


def test_what_the_judge_says_out_of_form_is_counted_and_not_scored(tmp_path: Path) -> None:
    fill(tmp_path, REPLIES)
    with judge_server(lambda prompt: "Well." if "hound" in prompt else says(prompt)) as server:
        judge = judge_for(server.url, "m", tmp_path / CACHE)
        assert judge is not None
        judge_results(load_results(tmp_path), judge)
    records = load_records(load_results(tmp_path)[0])
    assert [record.problem for record in records] == ["", "", UNREADABLE, ""]
    cell = build_tables(tmp_path)[0].rows[0].cells["videos"]
    assert cell.n == 3 and cell.value.value == pytest.approx(200 / 3)


def test_a_judge_that_fails_leaves_a_run_unmeasured(tmp_path: Path) -> None:
    fill(tmp_path, REPLIES)
    with judge_server(says) as server:
        judge = judge_for(server.url, "m", tmp_path / CACHE)
        assert judge is not None
        for _ in range(3):
            server.fail(403)
        with pytest.raises(UserError, match="refuses: 403"):
            judge_results(load_results(tmp_path), judge)
        assert not list(tmp_path.rglob("*.verdicts.jsonl"))
        server.faults.clear()  # the first refusal ends the others before they are all sent
        judge_results(load_results(tmp_path), judge)
    assert not any(cell.unmeasured for row in build_tables(tmp_path)[0].rows for cell in row.cells.values())


def test_bench_judges_after_its_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where the judge fails, the tables are written before the sentence that says so."""
    monkeypatch.setattr("vlmprune.bench.runner.run_bench", lambda plan, out, *_, **__: fill(Path(out), REPLIES))
    with judge_server(says) as server:
        command = ["bench", "--out", str(tmp_path / "r"), "--judge", server.url, "--judge-model", "m"]
        server.fail(403)
        server.fail(403)
        server.fail(403)
        assert cli.main(command) == 2
        said = capsys.readouterr()
        assert "not measured" in said.out and "refuses: 403" in said.err.splitlines()[-1]
        monkeypatch.setattr("vlmprune.bench.runner.run_bench", lambda *_, **__: [])
        server.faults.clear()  # the first refusal ends the others before they are all sent
        assert cli.main(command) == 0
        said = capsys.readouterr()
        assert "not measured" not in said.out and "Judge m: " in said.err and " tokens read and " in said.err
    assert cli.main(["bench", "--judge", "http://x/v1", "--out", str(tmp_path / "s")]) == 2
    assert "--judge-model" in capsys.readouterr().err and not (tmp_path / "s").exists()
