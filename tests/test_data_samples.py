"""From rows to samples: columns and their other names, answers and options, pictures of every kind, and each fault."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from harness_data import Columns, Files, lines, own, picture, png, problems, read, separated, text64
from PIL import Image
from pyarrow import parquet

from vlmprune.core.errors import UserError
from vlmprune.data.cells import LETTER, NUMBER, TEXT, UnfitError, as_list, as_text, letter_of
from vlmprune.data.rows import FILE, LINE
from vlmprune.tasks import built_in_tasks, get_task
from vlmprune.tasks.task import Place

SHARED = Path(__file__).parents[2] / "shared" / "data"
real_data = pytest.mark.skipif(not SHARED.is_dir(), reason="no real data at hand")
GOOD = {"question": "What?", "answer": "red"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    picture(0).save(tmp_path / "a.png")
    picture(1).save(tmp_path / "b.png")
    return tmp_path


# ---------------------------------------------------------------- cells


def test_cells_as_text_and_lists() -> None:
    assert [as_text(value) for value in (None, math.nan, 3.0, 3.5, 7, True, False, " x ")] == [
        "", "", "3", "3.5", "7", "yes", "no", "x",
    ]  # fmt: skip
    assert as_list("['a', 'b']") == ("a", "b") and as_list(["a", None, 2]) == ("a", "2")
    assert as_list("[1, 2]") == ("[1, 2]",) and as_list("[x]") == ("[x]",)  # an answer, not two


@pytest.mark.parametrize(
    ("answer", "options", "named", "letter"),
    [
        ("B", ("red", "blue"), "", "B"),
        ("(b)", ("red", "blue"), "", "B"),
        ("blue", ("red", "blue"), "", "B"),
        (1, ("red", "blue"), "", "B"),
        ("1", ("red", "blue"), "", "B"),  # as CSV has it
        ("2", ("1", "2", "3"), "", "B"),  # a text is the option that says so
        (2, ("1", "2", "3"), NUMBER, "C"),
        (2, ("1", "2", "3"), TEXT, "B"),
        ("A", ("B", "A"), LETTER, "A"),
        ("A", ("B", "A"), TEXT, "B"),
        ("A", ("A", "B"), "", "A"),
    ],
)
def test_the_right_option(answer: Any, options: tuple[str, ...], named: str, letter: str) -> None:
    assert letter_of(answer, options, named) == letter


@pytest.mark.parametrize(
    ("answer", "options", "why"),
    [
        ("green", ("red", "blue"), "'green' is none of its options"),
        ("C", ("red", "blue"), "'C' is none"),
        (2, ("red", "blue"), "'2' is none"),
        ("A", ("B", "A"), "'A' is the text of B and the letter of A"),
        (2, ("1", "2", "3"), "'2' is the text of B and the number of C"),
        ("same", ("same", "same"), "'same' is none"),
    ],
)
def test_an_answer_that_may_be_none_or_two_options(answer: Any, options: tuple[str, ...], why: str) -> None:
    with pytest.raises(UnfitError, match=why):
        letter_of(answer, options)


# ---------------------------------------------------------------- pictures


@pytest.mark.parametrize("kind", ["path", "base64", "data url", "list", "mapping", "path in a mapping"])
def test_a_picture_of_every_kind(kind: str, folder: Path) -> None:
    cells: dict[str, Any] = {
        "path": "a.png",
        "base64": text64(0),
        "data url": f"data:image/png;base64,{text64(0)}",
        "list": ["a.png", text64(1)],
        "path in a mapping": {"bytes": None, "path": "a.png"},
        "mapping": {"bytes": png(0), "path": "elsewhere.png"},
    }
    row = {**GOOD, "image": cells[kind]}
    if kind in ("mapping", "list", "path in a mapping"):
        parquet.write_table(pa.Table.from_pylist([row]), folder / "my.parquet")
        (sample,) = own(folder / "my.parquet")
    else:
        (sample,) = own(lines(folder / "my.jsonl", [row]))
    expected = [picture(k).tobytes() for k in range(2 if kind == "list" else 1)]
    assert not sample.problem and [image.tobytes() for image in sample.images] == expected


@pytest.mark.parametrize("ending", [".csv", ".tsv"])
def test_pictures_in_cells_of_text(ending: str, folder: Path) -> None:
    rows = [
        {"image": "['a.png', 'b.png']", "question": "q", "answer": "['x', 'y']", "A": "", "B": ""},
        {"image": text64(1), "question": "q", "answer": "B", "A": "x", "B": "y"},
        {"image": "", "question": "q", "answer": "x", "A": "", "B": ""},
    ]
    two, one, none = own(separated(folder / f"my{ending}", rows))
    assert [len(sample.images) for sample in (two, one, none)] == [2, 1, 0]
    assert two.answers == ("x", "y") and two.kind == "words"
    assert one.answers == ("B",) and one.options == ("x", "y") and one.kind == "option"


FAULTY: dict[str, tuple[dict[str, Any], str]] = {
    "gone": ({"image": "c.png"}, "there is no picture"),
    "web": ({"image": "https://a.b/c.png"}, "is on the web, and nothing is fetched"),
    "empty in a list": ({"images": ["a.png", None]}, "one of its pictures is empty"),
    "empty mapping": ({"image": {"bytes": None, "path": None}}, "its picture is empty"),
    "number": ({"image": 7}, "its picture is a int"),
    "name": ({"image": "x" * 5000 + ".png"}, "its picture is neither a file nor base64"),
    "no picture column": ({}, "no column for image or video"),
    "two": ({"image": "a.png", "question": ""}, "its column 'question' is empty"),
    "no answer": ({"image": "a.png", "answer": None}, "it has no answer in the column 'answer'"),
    "no option": ({"image": "a.png", "options": []}, "it has no options to choose from"),
    "hole": ({"image": "a.png", "options": ["red", ""]}, "one of its options is empty"),
    "many": ({"image": "a.png", "options": [f"o{k}" for k in range(27)]}, "27 options, more than there are letters"),
    "names": ({"image": "a.png", "options": {"1": "red", "2": "blue"}}, "the names 1, 2 instead of A, B"),
    "none of": ({"image": "a.png", "options": ["blue", "green"]}, "'red' is none of its options"),
    "slip": ({"image": "a.png", "option": ["red"]}, "its column 'option' is not known: is it 'options'?"),
    "case": ({"image": "a.png", "Hint": "h"}, "'Hint' is not known: is it 'hint'?"),
    "long": ({"image": "a.png", "question": "w" * 100_001}, "its question has 100,001 characters"),
    "metric": ({"image": "a.png", "metric": "f1"}, "its metric 'f1' is none of"),
    "yes": ({"image": "a.png", "metric": "yesno"}, "'red' would not count as right by its metric 'yesno'"),
}


def test_each_fault_costs_its_row_alone(folder: Path) -> None:
    rows = [{"id": name, **GOOD, **changes} for name, (changes, _) in FAULTY.items()]
    samples = own(lines(folder / "my.jsonl", [*rows, {"id": "good", **GOOD, "image": "a.png"}]))
    found = problems(samples)
    assert len(samples) == len(FAULTY) + 1 and found.keys() == FAULTY.keys()
    for name, (_, why) in FAULTY.items():
        assert why in found[name], name


def test_a_corrupt_picture_is_found_when_it_is_opened(folder: Path) -> None:
    (folder / "cut.png").write_bytes(png(0)[:200])
    (folder / "text.png").write_text("no picture")
    rows = [{**GOOD, "image": name} for name in ("cut.png", "text.png", "A" * 99 + "=")]
    for sample, why in zip(
        own(lines(folder / "my.jsonl", rows)), ("truncated", "no picture format", "no"), strict=True
    ):
        with pytest.raises(UserError, match=f"cannot be read: .*{why}"):
            _ = sample.images


def test_an_id_counts_once(folder: Path) -> None:
    rows = [{"id": name, **GOOD, "image": "a.png"} for name in ("x", "x#2", "x", "x")]
    samples = own(lines(folder / "my.jsonl", [*rows, {**GOOD, "image": "a.png"}, "{"]))
    assert [sample.id for sample in samples] == [
        f"my.jsonl/{name}" for name in ("x", "x#2", "x#3", "x#4", "line-5", "line-6")
    ]
    assert list(problems(samples)) == ["x#3", "x#4", "line-6"]


# ---------------------------------------------------------------- the user's own data


def test_the_other_names_of_columns(folder: Path) -> None:
    first = {"question": "q", "answer": "yes", "image": "a.png", "id": "1", "hint": "h", "options": ["yes", "no"]}
    other = {"text": "q", "label": "yes", "image_path": "a.png", "index": 1, "context": "h", "choices": ["yes", "no"]}
    third = {
        "text": "q",
        "answers": ["yes"],
        "file_name": "a.png",
        "question_id": 1,
        "hint": "h",
        "A": "yes",
        "B": "no",
    }
    digests = set()
    for row in (first, other, third):
        (sample,) = own(lines(folder / "my.jsonl", [row]))
        assert not sample.problem and sample.kind == "option" and sample.answers == ("A",)
        digests.add(sample.digest())
    assert len(digests) == 1


def test_kinds_of_answers_where_a_row_does_not_say(folder: Path) -> None:
    rows = [
        {**GOOD, "image": "a.png"},
        {**GOOD, "image": "a.png", "answer": True},
        {**GOOD, "image": "a.png", "answers": ["No"], "answer": None},
        {**GOOD, "image": "a.png", "options": {"A": "red", "B": "blue"}},
        {**GOOD, "image": "a.png", "answer": "three", "metric": "number", "group": "g", "category": "c"},
    ]
    samples = own(lines(folder / "my.jsonl", rows))
    assert not problems(samples)
    assert [sample.kind for sample in samples] == ["words", "yesno", "yesno", "option", "number"]
    assert (samples[4].group, samples[4].category, samples[0].group) == ("my.jsonl/g", "c", "my.jsonl/line-1")


def test_a_folder_of_pictures(folder: Path) -> None:
    separated(folder / "metadata.csv", [{"file_name": "a.png", "question": "q", "answer": "x"}])
    lines(folder / "notes.jsonl", [{}])
    (sample,) = own(folder)
    assert not sample.problem and sample.images[0].size == (24, 16) and sample.id.startswith(folder.name)


def test_names_that_mean_data(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    lines(folder / "my.jsonl", [GOOD])
    assert get_task("my.jsonl").name == "my.jsonl" and get_task(".").name == folder.name
    hub = get_task("owner/name:config:split").hub  # type: ignore[attr-defined]
    assert (hub.id, hub.config, hub.split) == ("owner/name", "config", "split")
    hub = get_task("owner/name::split").hub  # type: ignore[attr-defined]
    assert (hub.config, hub.split) == (None, "split")
    for name, why in [("gone.jsonl", "no data file 'gone.jsonl'"), ("nothing", "There is no task 'nothing'")]:
        with pytest.raises(UserError, match=why):
            get_task(name)


# ---------------------------------------------------------------- data sets


def test_what_is_missing_is_one_sentence(folder: Path) -> None:
    task = built_in_tasks()["mathvision"]
    with pytest.raises(UserError) as caught:
        next(task.samples(Place(data=folder)))
    said = caught.value.typed
    for part in (str(folder), "test.jsonl", "https://github.com/mathllm/MATH-V", "3,040 questions", "--data"):
        assert part in said
    with pytest.raises(UserError, match="is not a folder"):
        next(task.samples(Place(data=folder / "gone")))


def layout(name: str) -> tuple[Files, str]:
    return {
        "pope": (
            Files(
                ("coco_pope_*.json*",),
                Columns(question="text", answers="label", id=(FILE, "question_id"), group="image"),
                pictures="val2014",
            ),
            "COCO_val2014_000000310196.jpg",
        ),
        "ocrbench": (
            Files(("OCRBench.json",), Columns(pictures="image_path", answers="answers", id=LINE), "images"),
            "IIIT5K/test/918_1.png",
        ),
        "hallusionbench": (
            Files(
                ("HallusionBench.json",),
                Columns(
                    pictures="filename", answers="gt_answer", category="category",
                    id=("category", "subcategory", "set_id", "figure_id", "question_id"),
                ),
                pictures="images",
            ),
            "./VD/illusion/0_0.png",
        ),
        "mathvista": (
            Files(("testmini.json",), Columns(options="choices", letters=False, id="pid"), "data"),
            "images/1.jpg",
        ),
        "mathvision": (Files(("test.jsonl",), Columns(options="options", letters=False)), "images/1.jpg"),
    }[name]  # fmt: skip


@real_data
@pytest.mark.parametrize(
    ("name", "count", "without"),
    [("pope", 900, 0), ("ocrbench", 1000, 0), ("hallusionbench", 1129, 178), ("mathvista", 1000, 0),
     ("mathvision", 3040, 0)],
)  # fmt: skip
def test_native_layouts(name: str, count: int, without: int, tmp_path: Path) -> None:
    """All rows of the authors' own files are read; where only annotations are at hand, one picture is put there."""
    files, path = layout(name)
    for file in (SHARED / name).glob("*.json*"):
        (tmp_path / file.name).symlink_to(file)
    there = tmp_path / files.pictures / path
    there.parent.mkdir(parents=True)
    Image.new("RGB", (20, 10)).save(there)
    samples = read(tmp_path, files)
    fit = [sample for sample in samples if not sample.problem]
    missing = [sample for sample in samples if "there is no picture" in sample.problem]
    assert len(samples) == count and len(fit) + len(missing) == count
    assert len({sample.id for sample in samples}) == count
    shown = [sample for sample in fit if sample.pictures]
    assert shown and len(fit) - len(shown) == without
    assert all(sample.images[0].size == (20, 10) and sample.question and sample.answers for sample in shown)


def test_tgif_layout(tmp_path: Path) -> None:
    """TGIF-QA names a GIF without its ending, in cells parted by tabs under the ending .csv in the authors' files."""
    text = "gif_name\tquestion\tanswer\tvid_id\ntumblr_1\twhat is it ?\tcat\tFRAMEQA1\n"
    (tmp_path / "Test_frameqa_question.csv").write_text(text)
    (tmp_path / "gifs").mkdir()
    picture(0).save(tmp_path / "gifs" / "tumblr_1.gif")

    def named(row: dict[str, Any]) -> dict[str, Any]:
        return {**row, "gif": f"{row['gif_name']}.gif"}

    pytest.importorskip("av")
    files = Files(("Test_frameqa_question.csv",), Columns(video="gif", pictures="", id="vid_id", adapt=named), "gifs")
    (sample,) = read(tmp_path, files)
    assert not sample.problem and sample.id == "t/FRAMEQA1" and sample.video is not None
