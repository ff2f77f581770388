"""`vlmprune tune`: rounds that halve, targets, what is asked, and searches that go on where they were interrupted."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from vlmprune import cli
from vlmprune.bench.batch import Batch
from vlmprune.bench.load import load_model
from vlmprune.core.errors import UserError
from vlmprune.tune import measuring, search, told
from vlmprune.tune.agreement import same_answer, same_words
from vlmprune.tune.candidates import METHODS, asked_for, fitting
from vlmprune.tune.halving import LEAST_BATCHES, LEAST_TURNS, Round, halve, rounds_of
from vlmprune.tune.journal import Journal, Said
from vlmprune.tune.questions import DESCRIBE, questions_of
from vlmprune.tune.search import Found, Wish, tune
from vlmprune.tune.target import Figures, Target, milliseconds, parse_latency

ROOT = Path(__file__).resolve().parent.parent
PHOTOS = ROOT / "src" / "vlmprune" / "assets" / "photos" / "held_out"


def figures(loyalty: float, seconds: float, questions: int = 8) -> Figures:
    return Figures(loyalty, questions, seconds, seconds / 2, seconds * 2, 3, 20.0)


# ---------------------------------------------------------------- targets


def test_a_time_is_met_by_the_most_loyal() -> None:
    target = Target(latency=0.3)
    found = {
        "slow": figures(1.0, 0.4),
        "loyal": figures(0.9, 0.3),
        "fast": figures(0.5, 0.1),
        "slower": figures(1, 0.5),
    }
    assert sorted(found, key=lambda name: target.rank(found[name])) == ["loyal", "fast", "slow", "slower"]
    assert [name for name in found if target.met(found[name])] == ["loyal", "fast"]


def test_a_loyalty_is_met_by_the_fastest() -> None:
    target = Target(loyalty=0.9)
    found = {"low": figures(0.5, 0.1), "near": figures(0.8, 0.3), "slow": figures(1.0, 0.4), "fast": figures(0.9, 0.2)}
    assert sorted(found, key=lambda name: target.rank(found[name])) == ["fast", "slow", "near", "low"]


@pytest.mark.parametrize(("text", "seconds"), [("300ms", 0.3), ("0.3s", 0.3), ("2 s", 2.0), (" 15.5ms ", 0.0155)])
def test_times(text: str, seconds: float) -> None:
    assert parse_latency(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["300", "fast", "0ms", "-3ms", "1e3ms", "nan s", ""])
def test_what_is_not_a_time(text: str) -> None:
    with pytest.raises(UserError, match="is not a time"):
        parse_latency(text)


def test_times_for_people() -> None:
    assert [milliseconds(s) for s in (1.2345, 0.3004, 0.0123)] == ["1234 ms", "300 ms", "12.3 ms"]


@pytest.mark.parametrize("wishes", [{}, {"latency": 0.3, "loyalty": 0.9}, {"loyalty": 0.0}, {"loyalty": 1.01}])
def test_targets_that_are_refused(wishes: dict[str, float]) -> None:
    with pytest.raises(UserError):
        Target(**wishes)


def test_agreement() -> None:
    assert same_answer(" red\n", "red") == 1.0 and same_answer("Red", "red") == 0.0
    assert same_words("a red star", "a red star") == 1.0 and same_words("", " ") == 1.0
    assert same_words("a red ring", "a red star") == pytest.approx(2 / 3) and same_words("", "red") == 0.0


# ---------------------------------------------------------------- halving


def test_rounds_halve_the_candidates_and_end_on_everything() -> None:
    rounds = rounds_of(36, 16)
    assert [step.candidates for step in rounds] == [36, 18, 9, 5, 3]
    assert [step.batches for step in rounds] == [2, 2, 4, 8, 16] and rounds[-1].turns == 12
    for few in (rounds_of(1, 1), rounds_of(2, 5), rounds_of(3, 100)):
        assert len(few) == 1
    assert rounds_of(2, 5) == [Round(2, 5, 12)]
    assert all(step.batches == 1 and step.turns >= LEAST_TURNS for step in rounds_of(40, 1)) and LEAST_BATCHES > 1


def test_the_better_half_goes_on() -> None:
    truth = {f"m{k}": figures(k / 10, 0.1) for k in range(10)}
    asked: list[list[str]] = []

    def measure(names: Sequence[str], step: Round) -> Mapping[str, Figures]:
        assert len(names) == step.candidates
        asked.append(list(names))
        return truth

    standings = halve([*truth], rounds_of(10, 8), measure, Target(latency=1.0))
    assert [len(names) for names in asked] == [10, 5, 3]
    assert {*asked[1]} == {"m9", "m8", "m7", "m6", "m5"}
    assert [one.name for one in standings] == [f"m{k}" for k in range(9, -1, -1)]
    assert [one.round for one in standings] == [3, 3, 3, 2, 2, 1, 1, 1, 1, 1]


def test_what_a_first_round_overrates_falls_back() -> None:
    def measure(names: Sequence[str], step: Round) -> Mapping[str, Figures]:
        lucky = 1.0 if step.batches < 8 else 0.2
        return {name: figures(lucky if name == "lucky" else 0.6, 0.1) for name in names}

    standings = halve(["a", "lucky", "b", "c", "d"], rounds_of(5, 8), measure, Target(loyalty=0.5))
    assert standings[0].figures.loyalty == 0.6 and standings[2].name == "lucky" and standings[2].round == 2


# ---------------------------------------------------------------- questions


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two pictures."""
    (tmp_path / "pictures").mkdir()
    for name in ("coffee", "chelsea"):
        with Image.open(PHOTOS / f"{name}.jpg") as photo:
            photo.resize((112, 112)).save(tmp_path / "pictures" / f"{name}.png")
    return tmp_path / "pictures"


def asked(folder: Path, file: Path | None, limit: int = 99) -> list[tuple[str, str]]:
    samples = questions_of(folder, file, limit).asked
    assert len({sample.id for sample in samples}) == len(samples)
    return sorted((sample.id.split(": ")[1], sample.question) for sample in samples)


def test_what_is_asked(folder: Path) -> None:
    assert asked(folder, None) == [("chelsea.png", DESCRIBE), ("coffee.png", DESCRIBE)]
    (lines := folder.parent / "q.txt").write_text("\ufeffWhat is it?\n\n Is it red? \nWhat is it?\n", encoding="utf-8")
    assert asked(folder, lines) == [(f"{name}.png", q) for name in ("chelsea", "coffee") for q in
                                    ("Is it red?", "What is it?")]  # fmt: skip
    rows = [{"image": "coffee.png", "question": "Is it hot?", "answer": "yes"}, {"question": "What is it?"}]
    (data := folder.parent / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert asked(folder, data) == [
        ("chelsea.png", "What is it?"), ("coffee.png", "Is it hot?"), ("coffee.png", "What is it?")
    ]  # fmt: skip
    assert len(asked(folder, lines, limit=3)) == 3
    order = [questions_of(folder, lines, 99, seed).asked for seed in (0, 0, 1)]
    ids = [[(one.id, one.question) for one in samples] for samples in order]
    assert ids[0] == ids[1] != ids[2]


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("q.txt", " \n", "There are no questions"),
        ("q.doc", "What?", "must end in"),
        ("q.jsonl", '{"image": "tea.png", "question": "What?"}\n', "'tea.png', and there is no such picture"),
        ("q.jsonl", '{"image": "coffee.png"}\n', "Row 1 of .* has no question"),
        ("q.jsonl", "what\n", "Row 1 of .* cannot be read"),
    ],
)
def test_questions_that_are_refused(folder: Path, name: str, text: str, sentence: str) -> None:
    (file := folder.parent / name).write_text(text)
    with pytest.raises(UserError, match=sentence):
        questions_of(folder, file, 9)


def test_a_broken_picture_is_named_before_any_work(folder: Path) -> None:
    whole = (folder / "coffee.png").read_bytes()
    (folder / "broken.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"broken\.png"):
        questions_of(folder, None, 9)


# ---------------------------------------------------------------- the journal


def test_a_journal_goes_on_behind_a_torn_line(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path, {"model": "a"})
    journal.answered("m", "q", Said("ä\n", 3))
    journal.timed("m", 0, 0.25)
    with journal.path.open("ab") as file:
        file.write(b'{"candidate": "m", "tu')
    again = Journal.open(tmp_path, {"model": "a"})
    assert again.answers == {"m": {"q": Said("ä\n", 3)}} and again.seconds == {"m": {0: 0.25}}
    again.timed("m", 1, 0.5)
    assert Journal.open(tmp_path, {"model": "a"}).seconds == {"m": {0: 0.25, 1: 0.5}}
    assert not Journal.open(tmp_path, {"model": "b"}).seconds
    journal.path.write_text("something else\n")
    with pytest.raises(UserError, match="not a journal"):
        Journal.open(tmp_path, {"model": "a"})


# ---------------------------------------------------------------- searches


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few timings, on one thread."""
    torch.set_num_threads(1)
    monkeypatch.setattr(search, "TURNS", 2)


def test_candidates_of_the_default_are_there() -> None:
    assert len(asked_for(METHODS, (0.5, 0.222))) == 2 * len(METHODS)
    assert [one.text for one in asked_for(("divprune:0.3", "random"), (0.5,))] == ["divprune:0.3", "random:0.5"]
    with pytest.raises(UserError, match="needs one"):
        asked_for(("divprune",), ())


def wish(folder: Path, **given: Any) -> Wish:
    (folder.parent / "q.txt").write_text("What color is the circle?\n")
    values: dict[str, Any] = {"methods": ("divprune", "random"), "keeps": (1.0, 0.111), "max_new_tokens": 4} | given
    return Wish("llava", folder, values.pop("target", Target(loyalty=1.0)), folder.parent / "q.txt", **values)


def test_a_search_and_its_second_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """keep=1 changes no answer, so a loyalty of 1 is reached; a second run measures nothing."""
    out, steps = folder.parent / "out", []
    found = tune(wish(folder), out, lambda at: steps.append((at.done, at.due)))
    assert found.met and found.best.figures.loyalty == 1.0 and found.best.figures.questions == 2
    assert found.unpruned.kept == 196 and {one.figures.kept for one in found.standings} == {196.0, 22.0}
    assert steps == [(k, len(steps)) for k in range(len(steps))]
    kept = json.loads((out / "tune" / "found.json").read_text())
    assert kept["met"] and kept["best"] == found.recipes[found.best.name]

    def work(*_: object, **__: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(Batch, "run", work)
    monkeypatch.setattr(measuring, "generate", work)
    again = tune(wish(folder, target=Target(latency=1e9)), out)
    assert again.unpruned == found.unpruned and again.met and "unpruned model meets the target" in told.verdict(again)
    with pytest.raises(AssertionError, match="measured again"):
        tune(wish(folder, max_new_tokens=5), out)


def test_an_interrupted_search_goes_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, given, run, calls = folder.parent / "out", {"methods": ("random",)}, Batch.run, []

    def interrupted(batch: Batch, variant: Any) -> Any:
        calls.append(variant.text)
        if calls == ["vanilla", "random:1.0"]:
            raise KeyboardInterrupt
        return run(batch, variant)

    monkeypatch.setattr(Batch, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tune(wish(folder, **given), out)
    assert tune(wish(folder, **given), out).best.figures.questions == 2
    assert calls == ["vanilla", "random:1.0", "random:1.0", "random:0.111"]


def test_a_method_that_the_model_refuses_is_left_out() -> None:
    loaded = load_model("llava", "cpu")
    taken, refused = fitting(asked_for(("random", "fastv@20"), (0.5, 0.2)), loaded)
    assert [one.text for one in taken] == ["random:0.5", "random:0.2"]
    assert [*refused] == ["fastv@20"] and "layer" in refused["fastv@20"]
    with pytest.raises(UserError, match="Nothing of what was asked can run on llava"):
        fitting(asked_for(("fastv@20",), (0.5,)), loaded)


def test_a_target_out_of_reach_is_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder.parent / "q.txt").write_text("What color is the circle?\n")
    words = [
        "tune",
        "llava",
        "--images",
        str(folder),
        "--questions",
        str(folder.parent / "q.txt"),
        "--latency",
        "0.001ms",
    ]
    words += ["--methods", "random", "--keep", "0.5", "--max-new-tokens", "2", "--out", str(folder.parent / "out")]
    assert cli.main(words) == 1
    said = capsys.readouterr().out
    assert "No candidate meets the target, at most 0.0 ms. The nearest is random:0.5: " in said and "Use it" not in said
    assert cli.main([*words, "--json"]) == 1
    facts = json.loads(capsys.readouterr().out)
    assert facts["compared"] == "answers" and facts["met"] is False and facts["standings"][0]["figures"]["kept"] == 98


def test_the_table_and_the_command() -> None:
    found = Found(
        "my model", Target(loyalty=0.5), "answers", 1, figures(1.0, 0.4),
        halve(["a:0.5"], rounds_of(1, 1), lambda *_: {"a:0.5": figures(0.75, 0.2)}, Target(loyalty=0.5)),
        {"a:0.5": "f.py:A(x=1):0.5"}, made={"device": "cpu: x"},
    )  # fmt: skip
    head, plain, row = told.table(found)
    assert (
        "loyalty" in head and plain.startswith("vanilla ") and "0.750 [0.40, 0.94]" in row and "100 ms to 400 ms" in row
    )
    assert told.usage(found)[0].endswith("--model 'my model' --method 'f.py:A(x=1):0.5'")
    assert told.verdict(found) == (
        "f.py:A(x=1):0.5 meets the target, a loyalty of 0.5: 200 ms (unpruned 400 ms), loyalty 0.750 over 8 questions."
    )


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("--images nowhere --loyalty 0.9", "is not a folder"),
        ("--images .", "Give one target"),
        ("--images . --loyalty 0.9", "holds no pictures"),
        ("--images . --latency 300", "with its unit"),
        ("--images . --loyalty 0.9 --agreement x", "give answers or words"),
        ("--images . --loyalty 0.9 --max-new-tokens 0", "--max-new-tokens 0 must be at least 1"),
        ("--images . --loyalty 0.9 --device x", "is not a device"),
        ("--images . --loyalty 0.9 --methods fastw", "did you mean 'fastv'"),
    ],
)
def test_mistakes_are_one_sentence(
    arguments: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["tune", "llava", *arguments.split()]) == 2
    shown = capsys.readouterr()
    assert sentence in shown.err and shown.err.count("\n") == 1 and not shown.out
    assert not list(tmp_path.iterdir())
