"""`vlmprune bench` on a user's own file: the page's example as written, what is said of bad rows, and exit codes."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest
from harness_data import lines, picture, png, problems, separated, text64
from tiny_folder import save_llava

from vlmprune.bench.plan import Plan
from vlmprune.bench.problems import problem_note
from vlmprune.bench.runner import run_bench
from vlmprune.bench.store import load_records, load_results
from vlmprune.cli import main
from vlmprune.tasks.own import own_task

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "own-data.md").read_text()
SCENE = ROOT / "docs" / "images" / "scene.png"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_llava(tmp_path_factory.mktemp("model")))


@pytest.fixture(autouse=True)
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def bench(model: str, tasks: str, *more: str) -> int:
    return main(["bench", "--model", model, "--tasks", tasks, "--methods", "divprune", "--keep", "0.5", *more])


def answers(out: str = "results") -> dict[str, list[str]]:
    return {result.recipe: [one.id for one in load_records(result)] for result in load_results(out)}


def test_the_example_of_the_page(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As written, but for the model, which is smaller."""
    example = re.search(r"```jsonl\n(.*?)```", PAGE, re.DOTALL)
    command = re.search(r"```sh\n(vlmprune bench .*?)\n```", PAGE, re.DOTALL)
    assert example and command and len(example[1].splitlines()) == 10
    (tmp_path / "my.jsonl").write_text(example[1])
    shutil.copy(SCENE, tmp_path / "scene.png")
    assert not problems(own_task("my.jsonl").samples())
    words = shlex.split(command[1])[1:]
    words[words.index("llava")] = model
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "my.jsonl" in said and "could not be asked" not in said
    assert (tmp_path / "results" / "report" / "index.html").exists()
    assert {len(ids) for ids in answers().values()} == {10}


def test_rows_that_cannot_be_asked_are_counted_and_nothing_is_lost(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture().save("a.png")
    (tmp_path / "bad.png").write_bytes(png()[:100])
    good = {"question": "what is it ?", "answer": "red", "image": "a.png"}
    rows = [
        {"id": "one", **good},
        {"id": "corrupt", **good, "image": "bad.png"},
        {"id": "one", **good},
        {"id": "long", **good, "question": "what " * 4000},
        {"id": "none", **good, "image": None},
        "{",
    ]
    path = lines(tmp_path / "my.jsonl", rows)
    assert bench(model, str(path), "--batch-size", "2") == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "4 of 6 questions of my.jsonl could not be asked and are not counted: my.jsonl/corrupt (The picture" in out
    assert "image file is truncated" in out and "my.jsonl/one#2" in out and "my.jsonl/long (its prompt has" in out
    assert "and 1 more" in out
    for result in load_results("results"):
        records = {one.id.partition("/")[2]: one for one in load_records(result)}
        assert list(records) == ["one", "corrupt", "one#2", "long", "none", "line-6"]
        assert [bool(one.problem) for one in records.values()] == [False, True, True, True, False, True]
        assert records["none"].visual_before == records["none"].visual_kept == 0
    summary = (tmp_path / "results/report/summary.md").read_text()
    assert "4 of 6 questions" in summary


@pytest.mark.parametrize(
    ("name", "row", "why"),
    [
        (
            "columns.jsonl",
            {"q": "x", "a": "y", "img": "z"},
            "its columns are q, a, img, and expected are question, answer",
        ),
        ("corrupt.jsonl", {"question": "x", "answer": "y", "image": "bad.png"}, "bad.png' cannot be read"),
        ("gone.csv", {"question": "x", "answer": "y", "image": "c.png"}, "there is no picture"),
        ("empty.jsonl", None, "the data has no rows"),
    ],
)
def test_where_no_question_can_be_asked(
    name: str, row: dict | None, why: str, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.png").write_bytes(b"x")
    path = tmp_path / name
    if name.endswith(".csv"):
        separated(path, [row or {}])
    else:
        lines(path, [row] if row else [])
    for _ in range(2):  # also when the command is repeated, with the records of the first
        assert bench(model, str(path)) == 2
        (said,) = capsys.readouterr().err.strip().splitlines()
        assert said.startswith(f"vlmprune: No question of {name} can be asked") and why in said


@pytest.mark.parametrize(
    ("tasks", "why"),
    [
        ("gone.jsonl", "There is no data file 'gone.jsonl'."),
        ("folder", "'.*folder' has no data file: it needs one that ends in"),
        ("a/my.jsonl,b/my.jsonl", "'a/my.jsonl' and 'b/my.jsonl' are both called 'my.jsonl'"),
    ],
)
def test_mistakes_in_names(
    tasks: str, why: str, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("folder", "a", "b"):
        (tmp_path / name).mkdir()
    for name in ("a", "b"):
        lines(tmp_path / name / "my.jsonl", [])
    assert bench(model, tasks) == 2
    assert re.search(why, capsys.readouterr().err)


def test_a_run_on_a_tsv_of_vlmevalkit(model: str, tmp_path: Path) -> None:
    rows = [
        {"index": 7, "image": text64(), "question": "what ?", "A": "red", "B": "blue", "C": "", "answer": "B"},
        {"index": 8, "image": 7, "question": "what ?", "A": "red", "B": "blue", "C": "one", "answer": "C"},
    ]
    separated(tmp_path / "kit.tsv", rows)
    plan = Plan(models=(model,), tasks=("kit.tsv",), methods=("divprune",), keeps=(0.5,), batch_size=1, device="cpu")
    run_bench(plan, "results")
    assert set(map(tuple, answers().values())) == {("kit.tsv/7", "kit.tsv/8")}
    for result in load_results("results"):
        assert [(one.kind, one.answers, one.visual_before) for one in load_records(result)] == [
            ("option", ("B",), 49), ("option", ("C",), 49),
        ]  # fmt: skip


def test_a_note_only_where_there_is_a_problem() -> None:
    assert problem_note("t", 0, {}) == ""
