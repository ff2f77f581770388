"""`vlmprune score`: answers of other tools find their questions, and get a run's figures; a mistake is one sentence."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from judge_server import judge_server

from vlmprune import cli
from vlmprune.data.columns import Columns
from vlmprune.data.source import Files
from vlmprune.scoring.latex import value_of
from vlmprune.scoring.mathvision import extract_final
from vlmprune.scoring.metrics import JUDGED_ACCURACY
from vlmprune.scoring.replies import score_reply
from vlmprune.tasks.data_task import DataTask

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data" / "mathvision"
QUESTIONS = [
    {"id": "1", "question": "How many?", "options": [], "answer": "60", "subject": "counting", "image": "none/1.jpg"},
    {"id": "2", "question": "Which?", "options": list("ABCDE"), "answer": "C", "subject": "logic", "image": "2.jpg"},
    {"id": "3", "question": "How long?", "options": [], "answer": "1/2", "subject": "counting", "image": "3.jpg"},
]
REPLIES = {"1": "The answer is 60.", "2": "(B)", "3": "0.5"}


def lines(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def score(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs the command on MATH-Vision with three questions, whose pictures are not there."""
    lines(tmp_path / "test.jsonl", list(QUESTIONS))

    def run(answers: Path, *more: str, task: str = "mathvision") -> tuple[int, str, str]:
        code = cli.main(["score", task, str(answers), "--data", str(tmp_path), *more])
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


Score = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize("output", ["output", "response", "prediction", "pred", "reply", "text"])
@pytest.mark.parametrize("name", ["id", "question_id", "sample_id", "index"])
def test_ids_in_any_order_under_any_alias(score: Score, tmp_path: Path, output: str, name: str) -> None:
    rows = [{name: key, output: REPLIES[key]} for key in ("3", "1", "2")]
    code, out, _ = score(lines(tmp_path / "a.jsonl", rows), "--json")
    found = json.loads(out)
    assert code == 0 and found["points"] == 2 and found["n"] == 3 and found["unparsed"] == 0
    assert found["value"] == pytest.approx(200 / 3, abs=1e-3) and found["low"] < found["value"] < found["high"]
    assert found["categories"] == {"counting": 100, "logic": 0} and found["problems"] == {}


def test_the_order_of_the_data_and_ids_of_our_own_records(score: Score, tmp_path: Path) -> None:
    plain = [{"output": REPLIES[key]} for key in "123"]
    named = [{"id": f"mathvision/{key}", "output": REPLIES[key]} for key in "123"]
    numbers = [{"id": int(key), "output": REPLIES[key]} for key in "123"]
    for rows in (plain, named, numbers):
        code, out, _ = score(lines(tmp_path / "a.jsonl", rows), "--json")
        assert code == 0 and json.loads(out)["points"] == 2
    table = tmp_path / "a.csv"
    table.write_text("id,output\n1,60\n2,B\n3,0.5\n")
    assert json.loads(score(table, "--json")[1])["points"] == 2


def test_the_table(score: Score, tmp_path: Path) -> None:
    code, out, _ = score(lines(tmp_path / "a.jsonl", [{"id": key, "output": REPLIES[key]} for key in "123"]))
    assert code == 0
    assert out.splitlines()[2].split() == ["metric", "value", "95", "%", "interval", "points", "n", "units", "unparsed"]
    assert out.splitlines()[3].startswith("accuracy  66.67  [")
    assert ["counting", "100.00", "2"] in [line.split() for line in out.splitlines()]


@pytest.mark.parametrize(
    ("rows", "more", "sentence"),
    [
        (
            [{"id": "1", "output": "60"}, {"id": "9", "output": "1"}],
            [],
            "1 of 2 ids in .* are none of mathvision's, as",
        ),
        (
            [{"id": "1", "output": "60"}],
            [],
            "2 questions of mathvision have no answer .* as 'mathvision/2': .*--partial",
        ),
        ([{"id": "1", "output": "60"}] * 2, [], "The id '1' stands 2 times"),
        ([{"output": "60"}], [], "has 1 answers without ids, and mathvision has 3 questions"),
        ([{"output": "60"}] * 4, ["--partial"], "has 4 answers without ids"),
        ([{"id": "1", "said": "60"}], [], r"no column of replies \(output, response, .*its columns are id, said"),
        ([{"pred": "1", "text": "2"}], [], "has the columns pred and text: call the one that is meant 'output'"),
        ([{"id": "1", "output": ["60"]}], [], "Line 1 of .* has no text in the column 'output'"),
        ([{"id": "1", "output": "60"}, {"id": "2"}], [], "Line 2 of .* has no text in the column 'output'"),
        ([], [], "has no answers"),
    ],
)
def test_mistakes_are_one_sentence(
    score: Score, tmp_path: Path, rows: list[dict[str, object]], more: list[str], sentence: str
) -> None:
    code, out, err = score(lines(tmp_path / "a.jsonl", rows), *more)
    assert code == 2 and not out and err.count("\n") == 1 and re.search(sentence, err), err


def test_more_mistakes(score: Score, tmp_path: Path) -> None:
    there = lines(tmp_path / "a.jsonl", [{"id": "1", "output": "60"}])
    assert score(tmp_path / "none.jsonl")[0] == 2
    assert score(there, task="mathvison")[2].startswith("vlmprune: There is no task 'mathvison': did you mean")
    assert "without end" in score(there, task="synth-pope")[2]
    assert "give --judge-model, too" in score(there, "--judge", "http://127.0.0.1/v1")[2]
    assert "--judge localhost is not a URL" in score(there, "--judge", "localhost", "--judge-model", "m")[2]
    assert score(there, "--protocol", "nobody")[0] == 2


def test_partial_answers_are_scored_as_such(score: Score, tmp_path: Path) -> None:
    rows = lines(tmp_path / "a.jsonl", [{"id": "3", "output": "1/2"}])
    assert json.loads(score(rows, "--partial", "--json")[1])["n"] == 1
    rows = lines(tmp_path / "a.jsonl", [{"output": "60"}])
    assert json.loads(score(rows, "--partial", "--json")[1])["points"] == 1


def test_a_question_that_cannot_be_asked_is_counted(score: Score, tmp_path: Path) -> None:
    lines(tmp_path / "test.jsonl", [*QUESTIONS, {"id": "4", "question": "Which?", "options": []}])
    rows = [{"id": key, "output": REPLIES.get(key, "")} for key in "1234"]
    found = json.loads(score(lines(tmp_path / "a.jsonl", rows), "--json")[1])
    assert found["n"] == 3 and list(found["problems"]) == ["mathvision/4"]
    assert "1 questions are in no figure: mathvision/4" in score(tmp_path / "a.jsonl")[1]


VIDEOS = DataTask(
    name="videos",
    dimension="video",
    summary="made up",
    metric=JUDGED_ACCURACY,
    chance=0.0,
    kind="judged-video",
    judged=True,
    files=(Files(("videos.jsonl",), Columns(video="clip")),),
)


def test_a_judge_scores_what_no_rule_can(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vlmprune.tasks.get_task", lambda name: VIDEOS)
    question = {"question": "What runs?", "answer": "a dog", "clip": "none.mp4"}
    lines(tmp_path / "videos.jsonl", [{"id": key, **question} for key in "12"])
    answers = lines(tmp_path / "a.jsonl", [{"output": "a puppy"}, {"output": "a cat"}])
    command = ["score", "videos", str(answers), "--data", str(tmp_path)]
    assert cli.main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["value"] is None and found["points"] is None and found["unparsed"] is None and found["n"] == 2
    assert cli.main(command) == 0
    out = capsys.readouterr().out
    assert "not measured" in out and "2 replies need a judge: give --judge and --judge-model." in out
    with judge_server(lambda prompt: f'{{"pred": "{"yes" if "puppy" in prompt else "no"}", "score": 3}}') as server:
        judged = [*command, "--judge", server.url, "--judge-model", "m"]
        for calls in (2, 0):
            assert cli.main([*judged, "--json"]) == 0
            said = capsys.readouterr()
            assert json.loads(said.out)["value"] == 50 and f"Judge m: {calls} calls" in said.err
        assert len(server.asked) == 2
        server.answer = lambda prompt: "I like it."
        lines(answers, [{"output": "a puppy"}, {"output": "a bird"}])
        assert cli.main([*judged, "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["value"] == 100 and found["n"] == 1 and len(found["problems"]) == 1  # and never 0


@pytest.mark.skipif(not SHARED.exists(), reason="the recorded answers are not at hand")
def test_recorded_answers_of_llava_on_mathvision(capsys: pytest.CaptureFixture[str]) -> None:
    """259 of 3,040, as the authors count; and item by item what they found right."""
    recorded = SHARED / "recorded_llava-v1.5-7b.jsonl"
    assert cli.main(["score", "mathvision", str(recorded), "--data", str(SHARED), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["points"] == 259 and found["n"] == 3040 and found["value"] == pytest.approx(8.52, abs=0.005)
    questions = {row["id"]: row for row in map(json.loads, (SHARED / "test.jsonl").read_text().splitlines())}
    for row in map(json.loads, recorded.read_text().splitlines()):
        asked = questions[row["id"]]
        verdict = score_reply("mathvision", row["response"], (asked["answer"],), asked["options"])
        assert bool(verdict.score) == row["correct"], row
        ours, theirs = extract_final(row["response"]), row["model_answer"]
        assert ours == theirs or value_of(ours) == value_of(theirs) is not None  # they write 1/2 as \frac{1}{2}
