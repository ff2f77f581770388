"""Judged kinds: what the judge is asked, how its words are read, and a server that fails, refuses and recovers."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
from judge_server import Server, judge_server

from vlmprune.core.errors import UserError
from vlmprune.scoring import judge as judge_module
from vlmprune.scoring.judge import Judge
from vlmprune.scoring.judged import JUDGED
from vlmprune.scoring.replies import score_reply
from vlmprune.scoring.verdict import Expected, Verdict

MIA = Expected(("name a colour", "in one word"), (), {"component_weight": "[4, 6]"})
VIDEO = Expected(("a dog",))
MATH = Expected(("60",))
CHOICE = Expected(("B",), ("3/11", "8/11"), {"answer_type": "text"})


@pytest.fixture
def server() -> Iterator[Server]:
    with judge_server(lambda prompt: f"about {len(prompt)}") as found:
        yield found


def judge(server: Server, folder: Path, model: str = "m") -> Judge:
    return Judge(server.url, model, folder / "cache.jsonl", pause=0.0)


def test_answers_come_in_order_and_are_counted(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    asked = judge(server, tmp_path)
    assert asked.answers(["a", "bb", "a", "ccc"]) == ["about 1", "about 2", "about 1", "about 3"]
    assert len(server.asked) == 3 and set(server.keys) == {"Bearer secret"}
    assert server.asked[0]["model"] == "m" and server.asked[0]["temperature"] == 0
    assert (asked.cost.calls, asked.cost.cached, asked.cost.tokens_in, asked.cost.tokens_out) == (3, 1, 30, 6)
    assert "secret" not in (tmp_path / "cache.jsonl").read_text()


def test_what_is_in_the_cache_makes_no_call(server: Server, tmp_path: Path) -> None:
    judge(server, tmp_path).answers(["a", "b"])
    with (tmp_path / "cache.jsonl").open("a") as file:
        file.write('{"key": "killed in mid-wr')
    again = judge(server, tmp_path)
    assert again.answers(["b", "a"]) == ["about 1", "about 1"]
    assert len(server.asked) == 2 and again.cost.calls == 0 and again.cost.cached == 2
    judge(server, tmp_path, "another").answers(["a"])  # another model is another judge
    assert len(server.asked) == 3


@pytest.mark.parametrize(
    "faults",
    [
        [(429, b""), (500, b"oops"), (503, b"")],
        [(200, b"{not json")],
        [(200, b"[]"), (200, b'{"choices": []}')],
        [(200, b'{"choices": [{"message": {"content": null}}]}')],
        [(200, b'{"choices": [{"message": {"content": " "}}]}')],
    ],
)
def test_a_busy_or_broken_server_is_asked_again(
    server: Server, tmp_path: Path, faults: list[tuple[int, bytes]]
) -> None:
    for status, body in faults:
        server.fail(status, body)
    assert judge(server, tmp_path).answers(["abc"]) == ["about 3"]
    assert len(server.asked) == len(faults) + 1


def test_pauses_double_and_obey_the_server(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(judge_module.time, "sleep", waits.append)
    server.fail(500)
    server.fail(429, Retry_After="7")
    server.fail(429, Retry_After="Wed, 21 Oct 2026 07:28:00 GMT")
    server.fail(429, Retry_After="100000")
    Judge(server.url, "m", tmp_path / "c.jsonl", pause=1.0).answers(["a"])
    assert waits == [1, 7, 4, 60]


def test_a_server_that_never_answers(server: Server, tmp_path: Path) -> None:
    judge(server, tmp_path).answers(["before"])
    for _ in range(judge_module.ATTEMPTS):
        server.fail(503)
    with pytest.raises(UserError, match=r"has not answered in 6 attempts \(503"):
        judge(server, tmp_path).answers(["before", "now"])
    assert judge(server, tmp_path).answers(["before", "now"]) == ["about 6", "about 3"]  # goes on where it was
    assert len(server.asked) == 1 + judge_module.ATTEMPTS + 1


def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has not answered"):
        Judge("http://127.0.0.1:9", "m", tmp_path / "c.jsonl", pause=0.0).answers(["a"])


def test_a_refusal_is_an_error_at_once(server: Server, tmp_path: Path) -> None:
    server.fail(401, {"error": {"message": "Incorrect API key."}})
    with pytest.raises(UserError, match="refuses: 401 Unauthorized, Incorrect API key"):
        judge(server, tmp_path).answers(["a"])
    server.fail(404, b"<html>")
    with pytest.raises(UserError, match=r"refuses: 404 Not Found\.$"):
        judge(server, tmp_path).answers(["a"])
    assert len(server.asked) == 2


def test_a_model_that_takes_no_temperature(server: Server, tmp_path: Path) -> None:
    server.fail(400, {"error": {"message": "Unsupported value: 'temperature'"}})
    assert judge(server, tmp_path).answers(["a"]) == ["about 1"]
    assert "temperature" not in server.asked[1]


@pytest.mark.parametrize("url", ["example.org/v1", "file:///etc/passwd", "http://", ""])
def test_a_url_that_is_none(url: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a URL"):
        Judge(url, "m", tmp_path / "c.jsonl")


def test_the_endpoint_may_be_given_whole(server: Server, tmp_path: Path) -> None:
    whole = Judge(f"{server.url}/chat/completions", "m", tmp_path / "c.jsonl", pause=0.0)
    assert whole.answers(["a"]) == ["about 1"]


def test_prompts_hold_what_is_to_be_judged() -> None:
    said = JUDGED["judged-mia"].prompt("Name a colour.", "Red!", MIA)
    assert all(part in said for part in ("Name a colour.", "Red!", "1. name a colour (4 points)", "2: x/6"))
    said = JUDGED["judged-video"].prompt("What runs?", "A puppy.", VIDEO)
    assert all(part in said for part in ("What runs?", "A puppy.", "a dog", '"pred"'))
    said = JUDGED["judged-math"].prompt("How much is blue?", "It is 8/11", CHOICE)
    assert all(part in said for part in ("How much is blue?", "(B) 8/11", "It is 8/11"))


@pytest.mark.parametrize(
    ("kind", "said", "expected", "verdict"),
    [
        ("judged-mia", "score of component 1: 2/4, score of component 2: 6/6, total score: 8/10.", MIA, ("8", 0.8)),
        ("judged-mia", "**Total score**: 7.5 / 10", MIA, ("7.5", 0.75)),
        ("judged-mia", "total score: 11/10", MIA, None),
        ("judged-mia", "total score: 4/5", MIA, None),
        ("judged-mia", "It is fine.", MIA, None),
        ("judged-video", '{"pred": "yes", "score": 4}', VIDEO, ("yes 4", 1.0)),
        ("judged-video", "Here: {'pred': 'No', 'score': '1'}", VIDEO, ("no 1", 0.0)),
        ("judged-video", '{"pred": "yes"}', VIDEO, None),
        ("judged-video", '{"pred": "yes", "score": 9}', VIDEO, None),
        ("judged-video", '{"pred": "perhaps", "score": 3}', VIDEO, None),
        ("judged-math", "60", MATH, ("60", 1.0)),
        ("judged-math", "Final answer: \\frac{120}{2}", MATH, ("\\frac{120}{2}", 1.0)),
        ("judged-math", "12", MATH, ("12", 0.0)),
        ("judged-math", "NONE.", MATH, (None, 0.0)),
        ("judged-math", "(B)", CHOICE, ("B", 1.0)),
        ("judged-math", "A", CHOICE, ("A", 0.0)),
    ],
)
def test_the_judges_words_are_read(
    kind: str, said: str, expected: Expected, verdict: tuple[str | None, float] | None
) -> None:
    assert JUDGED[kind].read(said, expected) == (None if verdict is None else Verdict(*verdict))


@pytest.mark.parametrize(
    ("kind", "reply", "expected", "verdict"),
    [
        ("judged-mia", "", MIA, Verdict(None, 0.0)),  # an empty reply follows no instruction
        ("judged-mia", "Red", MIA, None),
        ("judged-video", "a dog", VIDEO, None),
        ("judged-math", "60", MATH, Verdict("60", 1.0)),
        ("judged-math", "61", MATH, Verdict("61", 0.0)),
        ("judged-math", "It is sixty", MATH, None),
        ("judged-math", "(B)", CHOICE, Verdict("B", 1.0)),
        ("judged-math", "the second one", CHOICE, None),
    ],
)
def test_what_needs_no_judge(kind: str, reply: str, expected: Expected, verdict: Verdict | None) -> None:
    assert JUDGED[kind].rule(reply, expected) == verdict
    alone = score_reply(kind, reply, expected.answers, expected.options, expected.facts)
    assert math.isnan(alone.score) if verdict is None else alone == verdict


def test_an_answer_is_kept_as_soon_as_it_comes(server: Server, tmp_path: Path) -> None:
    judge(server, tmp_path).answers(["abc"])
    line = json.loads((tmp_path / "cache.jsonl").read_text())
    assert line["reply"] == "about 3" and line["usage"] == {"prompt_tokens": 10, "completion_tokens": 2}
