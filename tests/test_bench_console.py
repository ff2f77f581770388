"""What the terminal shows: the whole table at 80 columns, and progress where nobody watches live."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from fake_results import fill
from rich.console import Console

from vlmprune.bench.compare import build_tables
from vlmprune.bench.console import print_tables, progress_bars
from vlmprune.bench.runner import Progress


def shown(folder: Path, width: int, terminal: bool) -> str:
    stream = io.StringIO()
    print_tables(Console(file=stream, width=width, force_terminal=terminal, color_system=None), build_tables(folder))
    return stream.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("results")
    fill(place)
    return place


@pytest.mark.parametrize(("width", "terminal"), [(80, True), (200, True), (80, False)])
def test_nothing_is_cut_off(folder: Path, width: int, terminal: bool) -> None:
    text = shown(folder, width, terminal)
    assert "…" not in text
    if terminal:
        assert max(map(len, text.splitlines())) <= width
    for table in build_tables(folder):
        assert f"{table.model}, " in text
        for row in table.rows:
            assert row.method in text
            if row.abs_mean is not None:
                assert f"{row.abs_mean:.1f}" in text
        for task in table.tasks:
            assert task.removeprefix("synth-") in text


@pytest.mark.slow
def test_intervals_where_there_is_room(folder: Path) -> None:
    assert ", 100]" in shown(folder, 200, True) and ", 100]" in shown(folder, 80, False)
    assert ", 100]" not in shown(folder, 80, True)


def test_one_budget_needs_one_rule(tmp_path: Path) -> None:
    fill(tmp_path, models=["llava"], keeps=[0.222], tasks=["synth-ocr"])
    lines = shown(tmp_path, 160, True).splitlines()
    assert [line.startswith("├") for line in lines].count(True) == 1


def test_an_undefined_metric_does_not_spoil_the_averages(tmp_path: Path) -> None:
    fill(tmp_path, models=["llava"], methods=["random"], keeps=[0.222], tasks=["synth-ocr", "synth-pope"])
    for path in tmp_path.glob("runs/*/synth-pope/*.jsonl"):  # no object that was asked for is there, and all say so
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps({**line, "answers": ["no"], "output": "no"}) + "\n" for line in lines))
    text = shown(tmp_path, 160, True)
    assert "nan" not in text and "F1 has no value on these questions" in text
    (table,) = build_tables(tmp_path)
    assert table.averaged == ("synth-ocr",) and all(row.rel_mean is not None for row in table.rows)


def test_progress_in_a_log_file_is_a_line_a_task() -> None:
    stream = io.StringIO()
    with progress_bars(Console(file=stream, force_terminal=False)) as show:
        for done in range(8):
            show(Progress("llava", "synth-mme" if done < 4 else "synth-ocr", "vanilla", done, 8, done % 4, 4))
        show(Progress("llava", "", "", 8, 8, 0, 0))
    assert stream.getvalue().splitlines() == ["  0 %  llava · synth-mme", " 50 %  llava · synth-ocr"]
