"""The result store: what survives a kill, what is the same run, what tables read."""

import dataclasses
import json
import os
from itertools import islice
from pathlib import Path

import pytest
from fake_results import fill, make_record, make_run

from vlmprune.bench import verdicts
from vlmprune.bench.compare import build_tables
from vlmprune.bench.store import VANILLA, Run, Store, load_records, load_results, records_path
from vlmprune.core.errors import UserError
from vlmprune.scoring.replies import Verdict
from vlmprune.tasks import generated_tasks

TASK = generated_tasks()["synth-pope"]
SAMPLES = list(islice(TASK.samples(), 10))
IDS = [sample.id for sample in SAMPLES]


def a_run(**changes: object) -> Run:
    return dataclasses.replace(make_run("llava", TASK, SAMPLES, "fastv@2", 0.333), batch_size=4, **changes)


def test_the_key_holds_everything_and_the_setting_all_but_the_method() -> None:
    run = a_run()
    assert run.key == a_run().key
    for name, value in {
        "weights": "x", "dtype": "float16", "attention": "eager", "version": run.version + 1, "samples": "x", "n": 9,
        "protocol": "short", "generation": {"do_sample": False}, "batch_size": 8, "versions": {"torch": "3"},
    }.items():  # fmt: skip
        other = dataclasses.replace(run, **{name: value})
        assert other.key != run.key and other.setting != run.setting, name
    for name, value in {
        "method": "dart@2",
        "recipe": "dart@2:0.333",
        "keep": 0.2,
        "positions": "compact",
        "seed": 1,
    }.items():
        other = dataclasses.replace(run, **{name: value})
        assert other.key != run.key and other.setting == run.setting, name


@pytest.mark.parametrize(
    ("written", "extra", "counted"),
    [
        (0, b"", 0),
        (4, b"", 4),
        (6, b"", 4),  # half a batch is done again
        (8, b'{"id": "synth-pope/0000', 8),  # killed in mid-write
        (10, b"", 10),  # the last batch is short
        (10, b'{"id": "x"}\n', 10),
        (9, b"", 8),
    ],
)
def test_resuming_counts_whole_batches(tmp_path: Path, written: int, extra: bytes, counted: int) -> None:
    run = a_run()
    with Store(tmp_path) as store:
        store.append(run, [make_record(run, sample) for sample in SAMPLES[:written]])
        path = records_path(tmp_path, run)
        whole = path.read_bytes()
        path.write_bytes(whole + extra)
        assert store.resume(run, IDS) == counted
        assert path.read_bytes() == b"".join(whole.splitlines(keepends=True)[:counted])


def test_samples_of_another_stream_are_not_taken_for_ours(tmp_path: Path) -> None:
    run = a_run()
    with Store(tmp_path) as store:
        store.append(run, [make_record(run, sample) for sample in SAMPLES[4:8]])
        assert store.resume(run, IDS) == 0


def test_a_result_is_written_once(tmp_path: Path) -> None:
    run = a_run()
    with Store(tmp_path) as store:
        assert not store.is_finished(run)
        store.finish(run, note="first")
        before = records_path(tmp_path, run).with_suffix(".json").read_bytes()
        store.finish(run, note="second")
    assert records_path(tmp_path, run).with_suffix(".json").read_bytes() == before
    assert not list(tmp_path.rglob("*.tmp"))


def test_records_are_scored_anew_without_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, models=["llava"], methods=["random"], keeps=[0.333], tasks=["synth-pope"], n=10)
    result = load_results(tmp_path)[0]
    line = json.loads(result.records_path.read_text().splitlines()[0])
    assert load_records(result)[0].score == line["score"]
    monkeypatch.setattr(verdicts, "score_reply", lambda *_: Verdict("yes", 1.0))
    assert all(record.score == 1.0 for record in load_records(result))


def test_a_truncated_line_of_a_finished_run_is_an_error(tmp_path: Path) -> None:
    fill(tmp_path, models=["llava"], methods=[], tasks=["synth-pope"], n=10)
    result = load_results(tmp_path)[0]
    os.truncate(result.records_path, result.records_path.stat().st_size - 3)
    with pytest.raises(UserError, match="lost samples"):
        load_records(result)


def test_table_order_and_what_stands_together(tmp_path: Path) -> None:
    fill(
        tmp_path, models=["qwen2_5_vl", "llava"], methods=["random", "dart@2"], tasks=["synth-pope", "synth-ocr"], n=10
    )
    results = load_results(tmp_path)
    assert [r.model for r in results[:: len(results) // 2]] == ["qwen2_5_vl", "llava"]
    assert list(dict.fromkeys(r.task for r in results)) == ["synth-pope", "synth-ocr"]
    assert [(r.method, r.keep) for r in results[:7]] == [
        (VANILLA, 1.0), *((m, k) for m in ("random", "dart@2") for k in (0.333, 0.222, 0.111)),
    ]  # fmt: skip
    # fewer samples are another setting: the newest command decides what the tables show
    fill(tmp_path, models=["llava"], methods=["random"], keeps=[0.5], tasks=["synth-pope"], n=6)
    shown = [r for r in load_results(tmp_path) if r.model == "llava" and r.task == "synth-pope"]
    assert {(r.method, r.n) for r in shown} == {(VANILLA, 6), ("random", 6)}
    assert len(load_results(tmp_path, every=True)) == len(results) + 2
    # another method under the same setting joins the table
    fill(tmp_path, models=["llava"], methods=["divprune"], keeps=[0.5], tasks=["synth-pope"], n=6)
    shown = [r for r in load_results(tmp_path) if r.model == "llava" and r.task == "synth-pope"]
    assert [r.method for r in shown] == [VANILLA, "random", "divprune"]


def test_folders_without_results(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no result folder"):
        load_results(tmp_path / "nothing")
    with pytest.raises(UserError, match="no finished run"):
        load_results(tmp_path)
    fill(tmp_path, models=["llava"], methods=[], tasks=["synth-pope"], n=4)
    path = load_results(tmp_path)[0].records_path.with_suffix(".json")
    path.write_text(path.read_text().replace('"schema": 1', '"schema": 99'))
    with pytest.raises(UserError, match="schema 99"):
        load_results(tmp_path)
    path.write_text("{")
    with pytest.raises(UserError, match="is not a result"):
        load_results(tmp_path)


def test_two_writers_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    with Store(tmp_path), pytest.raises(UserError, match="Another run is writing"):
        Store(tmp_path)
    Store(tmp_path).close()


def test_an_unwritable_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        Store(tmp_path / "file" / "results")


def test_tables_compare_with_the_own_vanilla_run(tmp_path: Path) -> None:
    fill(tmp_path, models=["llava"], methods=["random"], keeps=[0.333, 0.111], n=40)
    (table,) = build_tables(tmp_path)
    vanilla, *rest = table.rows
    assert vanilla.is_vanilla and vanilla.rel_mean == pytest.approx(100)
    for row in rest:
        ratios = [row.cells[task].value.value / vanilla.cells[task].value.value * 100 for task in table.averaged]
        assert row.rel_mean == pytest.approx(sum(ratios) / len(ratios))
        assert row.abs_mean == pytest.approx(
            sum(row.cells[task].value.value for task in table.averaged) / len(table.averaged)
        )
        for task, cell in row.cells.items():
            assert cell.diff is not None
            assert cell.diff.value == pytest.approx(cell.value.value - vanilla.cells[task].value.value)
            assert cell.diff.low <= cell.diff.value <= cell.diff.high


def test_tasks_near_chance_are_left_out_and_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fake_results

    def blind(run: Run, sample: object) -> object:
        record = make_record(run, sample)
        return dataclasses.replace(record, output="yes") if run.task == "synth-pope" else record

    monkeypatch.setattr(fake_results, "make_record", blind)
    fill(tmp_path, models=["llava"], methods=["random"], keeps=[0.333], tasks=["synth-pope", "synth-ocr"], n=60)
    (table,) = build_tables(tmp_path)
    assert table.averaged == ("synth-ocr",)
    assert "synth-pope (unpruned" in table.notes()[0] and "chance 66.7" in table.notes()[0]


def test_without_vanilla_there_is_no_ratio(tmp_path: Path) -> None:
    fill(tmp_path, models=["llava"], methods=["random"], keeps=[0.333], tasks=["synth-pope"], n=10)
    vanilla = next(r for r in load_results(tmp_path) if r.is_vanilla)
    vanilla.records_path.with_suffix(".json").unlink()
    (table,) = build_tables(tmp_path)
    cell = table.rows[0].cells["synth-pope"]
    assert cell.ratio is None and cell.diff is None and table.rows[0].rel_mean is None
    assert "has not been run" in table.left_out["synth-pope"]


def test_what_deserves_a_second_look_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, models=["llava"], methods=["random"], keeps=[0.333], tasks=["synth-ocr"], n=40)
    (table,) = build_tables(tmp_path)
    cell = table.rows[1].cells["synth-ocr"]
    monkeypatch.setattr("vlmprune.bench.table.TOO_GOOD", cell.ratio - 0.1)
    monkeypatch.setattr("vlmprune.bench.table.VAGUE", -1.0)
    notes = " ".join(table.notes())
    assert f"random:0.333 on synth-ocr ({cell.ratio:.0f} %)" in notes
    assert "In 2 of 2 runs" in notes
