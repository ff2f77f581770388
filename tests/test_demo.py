"""The demo page behind its browser: settings and links, what is told of patches, answers in turns, uploads, errors."""

from __future__ import annotations

import json
import re
import sys
import threading
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import pytest
import torch
from harness_data import picture
from PIL import Image

from vlmprune import UserError, cli
from vlmprune.ask.run import Question, answer
from vlmprune.bench.load import Loaded, load_model
from vlmprune.core.fates import Fate, Step
from vlmprune.core.report import RunReport
from vlmprune.core.view import Grid, Whole
from vlmprune.demo.asking import Desk, Result
from vlmprune.demo.cards import cards
from vlmprune.demo.patches import Patches, patches_of
from vlmprune.demo.samples import samples_for
from vlmprune.demo.settings import Settings, read_query
from vlmprune.demo.uploads import take_upload

QUESTION = "What number is on the plate?"
DEFAULT = Settings("scene", QUESTION, ("hiprune",), 0.25)
SAMPLES, OFFERED = ["scene", "photo"], ["hiprune", "fastv", "pyramiddrop@8,16,24:0.5", "a&b"]


@pytest.fixture(scope="module")
def desk() -> Desk:
    return Desk(load_model("llava", "cpu"), Question("", max_new_tokens=6))


def test_a_link_says_all_settings() -> None:
    chosen = Settings("photo", 'Is it "a & b" = c? ü', ("pyramiddrop@8,16,24:0.5", "a&b"), 0.111)
    assert read_query(chosen.query(), DEFAULT, SAMPLES, OFFERED) == chosen
    own = Settings("", QUESTION, (), 0.5)
    assert "sample" not in own.query()


def test_a_link_may_say_little_or_nothing() -> None:
    assert read_query("", DEFAULT, SAMPLES, OFFERED) is None
    assert read_query("?__theme=dark", DEFAULT, SAMPLES, OFFERED) is None
    assert read_query("?keep=0.5", DEFAULT, SAMPLES, OFFERED) == Settings("scene", QUESTION, ("hiprune",), 0.5)


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("?sample=other", "no sample 'other'"),
        ("?question=+", "no question"),
        ("?question=" + "x" * 1001, "more than 1000 characters"),
        ("?method=nothing", "'nothing' is not offered"),
        ("?method=/tmp/evil.py:Evil", "is not offered"),
        ("?keep=0", "0"),
        ("?keep=2.5", "2.5"),
        ("?keep=64", "a share of the tokens"),
        ("?keep=much", "much"),
    ],
)
def test_a_link_says_nothing_that_is_not_offered(query: str, words: str) -> None:
    with pytest.raises(UserError, match=re.escape(words)):
        read_query(query, DEFAULT, SAMPLES, OFFERED)


def test_too_many_methods_are_refused() -> None:
    many = [f"method{number}" for number in range(7)]
    with pytest.raises(UserError, match="More than 6 methods"):
        Settings("scene", QUESTION, tuple(many), 0.5).check(SAMPLES, many)


# ---------------------------------------------------------------- patches


def report_of(*steps: Step | None, count: int = 6) -> tuple[RunReport, Whole]:
    """A report of acts on a picture of 2 x 3 patches: the first before the LLM, each next before a later layer."""
    fate = Fate(torch.arange(count), list(steps))
    stages = []
    for number in range(len(steps)):
        joined = fate.joined(number + 1)
        stages.append((3 * number, [[(joined == torch.arange(count)).nonzero().flatten()]]))
    whole = Whole("image", Grid(2, 3), torch.arange(count))
    return RunReport(kept=stages[-1][1], stages=stages, fates=[[fate]], wholes=[[(whole,)]]), whole


def step(before: list[int], after: list[int], **more: Any) -> Step:
    chosen = [before.index(slot) if slot in before else -1 for slot in after]
    return Step(torch.tensor(before), torch.tensor(after), torch.tensor(chosen), **more)


def said(found: Patches) -> list[str]:
    return [found.sentences[number] for number in found.said]


def test_what_became_of_a_patch_is_told_with_its_place() -> None:
    merge = step(list(range(6)), [0, 2], merges=True, members=torch.tensor([0, 0, 1, 1, -1, 0]))
    found = patches_of(*report_of(merge, step([0, 2], [0])))
    lost = "merged into the token at row 1, column 3, which was dropped before layer 3"
    into_first = "merged before the LLM into the token at row 1, column 1"
    assert said(found) == [
        "kept; its token also holds 2 other patches",
        into_first,
        "dropped before layer 3",
        lost,
        "dropped before the LLM",
        into_first,
    ]
    assert found.into == (-1, 0, -1, -1, -1, 0) and (found.rows, found.cols) == (2, 3)


def test_what_a_method_does_not_say_is_not_made_up() -> None:
    untold = step(list(range(6)), [1, 4], merges=True)
    assert said(patches_of(*report_of(untold)))[0] == "dropped or merged (the method does not say which) before the LLM"
    placeless = step(list(range(6)), [1, -1], merges=True, members=torch.tensor([1, 0, 1, 1, 1, 1]))
    assert said(patches_of(*report_of(placeless)))[0] == "merged into a token that stands at no patch before the LLM"


def test_kinds_of_kept_patches_are_named() -> None:
    found = patches_of(*report_of(step(list(range(6)), [1, 4], parts={"anchors": torch.tensor([4])})))
    assert said(found)[1] == "kept" and said(found)[4] == "kept (anchors)"


def test_the_score_of_a_token_is_told_with_its_place_among_all() -> None:
    first = step(list(range(6)), [0, 2, 4], ratings=torch.tensor([0.5, 0.125, 0.25, 0.0, 4.0, 0.125]))
    found = patches_of(*report_of(first, step([0, 2, 4], [0, 2]), step([0, 2], [2], ratings=torch.tensor([1.0, 2.0]))))
    assert found.scores == (
        "score 1, place 3 of 6",  # of the last act that gave it one
        "score 0.125, place 4 of 6",
        "score 2, place 2 of 6",
        "score 0, place 6 of 6",
        "score 4, place 1 of 6",
        "score 0.125, place 4 of 6",
    )
    assert set(patches_of(*report_of(step(list(range(6)), [1, 4]))).scores) == {""}, "it gave none"


@pytest.mark.parametrize("method", ["downsample", "tome", "visionzip", "pyramiddrop", "vtw", "hilo"])
def test_what_is_told_is_what_the_report_says(method: str, desk: Desk) -> None:
    image = picture(1, (112, 112))
    *_, found = desk.results(image, QUESTION, [method], 0.25)
    assert found.answer is not None and found.answer.report is not None, found.problem
    report = found.answer.report
    (whole,) = report.wholes[0][0]
    told = patches_of(report, whole)
    assert len(told.said) == len(told.into) == len(told.scores) == told.rows * told.cols
    if method == "downsample":
        assert told.rows * told.cols == report.tokens[0][1]
        return
    kept = [cell for cell, sentence in enumerate(said(told)) if sentence.startswith("kept")]
    assert kept == [slot for slot in report.kept[0][0].tolist() if int(report.joined()[slot]) == slot]


# ---------------------------------------------------------------- answers


def test_the_unpruned_answer_comes_first_and_all_are_those_of_run(desk: Desk, tmp_path: Path) -> None:
    image = picture(3, (112, 112))
    image.save(tmp_path / "scene.png")
    found = list(desk.results(image, QUESTION, ["hiprune", "fastv@2:0.1"], 0.25))
    assert [one.name for one in found] == ["unpruned", "hiprune:0.25", "fastv@2:0.1"]
    for one, (method, keep) in zip(found, [(None, None), ("hiprune", 0.25), ("fastv@2:0.1", None)], strict=True):
        assert one.answer is not None and 0 < one.answer.first <= one.answer.seconds
        own = answer(tmp_path / "scene.png", QUESTION, "llava", method, keep, device="cpu", max_new_tokens=6)
        assert one.answer.text == own.text


def test_a_known_unpruned_answer_is_not_asked_for_again(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    [plain] = desk.results(picture(3, (112, 112)), QUESTION, [], 0.25)
    monkeypatch.setattr(desk.loaded.model, "generate", None)
    assert [*desk.results(picture(3, (112, 112)), QUESTION, [], 0.25, plain.answer)] == [plain]


def test_one_method_that_fails_leaves_the_others(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    from vlmprune.methods.vision.divprune import DivPrune

    def broken(*_: object) -> None:
        raise RuntimeError("secret of the server")

    monkeypatch.setattr(DivPrune, "select_together", broken)
    found = list(desk.results(picture(3, (112, 112)), QUESTION, ["divprune", "uniform", "fastv@99"], 0.25))
    assert [one.answer is None for one in found] == [False, True, False, True]
    assert "RuntimeError" in found[1].problem and "secret" not in found[1].problem
    assert "layer 99" in found[3].problem


def test_two_visitors_at_once_get_what_each_gets_alone(desk: Desk) -> None:
    asked = [(picture(number, (112, 112)), method) for number, method in enumerate(["hiprune", "fastv", "tome"])]

    def texts(place: int, found: dict[int, Any]) -> None:
        image, method = asked[place]
        results = list(desk.results(image, QUESTION, [method, "uniform"], 0.25))
        answers = [one.answer for one in results if one.answer is not None]
        found[place] = [(one.text, one.report and one.report.kept) for one in answers]

    alone: dict[int, Any] = {}
    together: dict[int, Any] = {}
    for place in range(3):
        texts(place, alone)
    threads = [threading.Thread(target=texts, args=(place, together)) for place in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [len(found) for found in alone.values()] == [3, 3, 3]
    assert str(together[0]) == str(alone[0]) and str(together[1]) == str(alone[1]) and str(together[2]) == str(alone[2])


def test_what_cannot_prune_the_model_is_not_offered(desk: Desk) -> None:
    deep = "fastv@99"
    with pytest.raises(UserError, match="layer 99"):
        desk.offered([deep])
    assert not desk._works(deep) and desk._works("fastv")


@pytest.mark.parametrize("model", ["llava", "qwen2_5_vl"])
def test_samples_suit_the_model(model: str, desk: Desk) -> None:
    loaded: Loaded = desk.loaded if model == "llava" else load_model(model, "cpu")
    found = samples_for(loaded)
    assert len(found) == 6 and all(name == one.name for name, one in found.items())
    [first, *_] = found.values()
    [result] = Desk(loaded, Question("", max_new_tokens=6)).results(first.image, first.question, [], 0.25)
    assert result.answer is not None and result.notes == ()


# ---------------------------------------------------------------- cards


def test_cards_hold_what_was_said_and_nothing_of_it_is_markup(desk: Desk) -> None:
    image, evil = picture(3, (112, 112)), "<script>alert(1)</script>"
    results = [*desk.results(image, QUESTION, ["hiprune"], 0.25), Result("bad", problem=evil, notes=(evil,))]
    html = cards(image, desk.loaded.processor, results, link="?question=<b>", head=evil)
    assert "<script" not in html and unescape(html).count(evil) == 3
    assert results[1].answer is not None and results[1].answer.report is not None
    before, after = results[1].answer.report.tokens[0]
    assert f"{before} → {after}" in html and html.count("<article") == 3
    (facts,) = re.findall(r'data-patches="([^"]*)"', html)
    read = json.loads(unescape(facts))
    assert read["rows"] * read["cols"] == len(read["said"]) and read["window"] == [0, 0, 1, 1]


def test_what_cannot_be_drawn_is_said_beside_the_answer(desk: Desk) -> None:
    image = picture(3, (112, 112))
    [_, pruned] = desk.results(image, QUESTION, ["uniform"], 0.25)
    assert pruned.answer is not None and pruned.answer.report is not None
    (whole,) = pruned.answer.report.wholes[0][0]
    small = whole._replace(grid=Grid(2, 2))
    for wholes, words in (((), "form no grid"), ((small,), "lies beyond a grid of 2 x 2")):
        report = replace(pruned.answer.report, wholes=[[wholes]])
        html = cards(image, desk.loaded.processor, [replace(pruned, answer=replace(pruned.answer, report=report))])
        assert words in html and "data-patches" not in html and pruned.answer.text in html


def test_a_changed_answer_is_marked(desk: Desk) -> None:
    [plain, pruned] = desk.results(picture(3, (112, 112)), QUESTION, ["uniform"], 0.25)
    assert plain.answer is not None
    other = replace(plain, answer=replace(plain.answer, text="something else"))
    same = replace(plain, answer=replace(plain.answer, text=pruned.answer.text if pruned.answer else ""))
    image, processor = picture(3, (112, 112)), desk.loaded.processor
    assert "vp-changed" in cards(image, processor, [other, pruned])
    assert "vp-changed" not in cards(image, processor, [same, pruned])


# ---------------------------------------------------------------- uploads and the command


def test_an_upload_is_read_and_deleted_whatever_it_holds(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.png", tmp_path / "bad.png"
    picture(1, (40, 30)).save(good)
    bad.write_bytes(b"no picture")
    assert take_upload(good, tmp_path).size == (40, 30)
    with pytest.raises(UserError, match=r"^'bad.png' is not a picture") as caught:
        take_upload(bad, tmp_path)
    assert str(tmp_path) not in str(caught.value) and not list(tmp_path.iterdir())


def test_nothing_outside_the_folder_of_uploads_is_touched(tmp_path: Path) -> None:
    own = tmp_path / "own.png"
    Image.new("RGB", (8, 8)).save(own)
    folder = tmp_path / "uploads"
    folder.mkdir()
    for path in (own, folder / ".." / "own.png"):
        with pytest.raises(UserError, match="not a file that was uploaded"):
            take_upload(path, folder)
    assert own.exists()


def test_without_gradio_there_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert cli.main(["demo"]) == 2
    err = capsys.readouterr().err
    assert "vlmprune demo needs gradio: pip install 'vlmprune[demo]'" in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--methods", "hipprune"], "hiprune"),
        (["--methods", "hiprune:0.2", "--keep", "1.5"], "--keep 1.5"),
        (["--keep", "0"], "--keep 0"),
        (["--methods", "hiprune,fastv,tome,trim,pool,dart,vtw"], "at most 6"),
        (["--max-new-tokens", "0"], "--max-new-tokens 0"),
        (["--host", "256.0.0.1", "--port", "0"], "--host 256.0.0.1"),
        (["--port", "0", "--model", "lava"], "did you mean 'llava'"),
        (["--port", "0", "--methods", "fastv@99"], "layer 99"),
    ],
)
def test_wrong_arguments_get_one_sentence(
    words: list[str], sentence: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.modules["vlmprune.cli.demo"], "check_packages", lambda command: None)
    assert cli.main(["demo", *words]) == 2
    err = capsys.readouterr().err
    assert sentence in err and err.count("\n") == 1
