"""The page that is read first: what it concludes, the plot beside it, and tables to sort and to read anywhere."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from fake_results import fill

from vlmprune.bench.compare import build_tables
from vlmprune.bench.redrawn import redrawn
from vlmprune.bench.runs import groups_of
from vlmprune.bench.stats import Estimate, mean_estimate
from vlmprune.bench.store import Run, load_records, load_results
from vlmprune.bench.table import Table
from vlmprune.data.sample import Sample
from vlmprune.report import build
from vlmprune.report import tables as shown
from vlmprune.report.glance import as_asked, marks_of, own_budgets
from vlmprune.report.marks import PATHS, mark
from vlmprune.report.means import levels_of
from vlmprune.report.plots import accuracy_figure, inline_svg, lines_of, styles
from vlmprune.report.scatter import ENTERING, OPERATIONS, Point, front, points_of, scatter
from vlmprune.report.verdict import means_of, sentences

WRONG = {"good": 0, "like": 1, "random": 20, "poor": 21, "worse": 38}  # of 40 questions of each task
AS = {"good": "divprune", "like": "hiprune", "random": "random", "poor": "visionzip", "worse": "downsample"}


def results(folder: Path, wrong: dict[str, int], **changes: Any) -> Table:
    """Made-up results: each method is wrong on the first questions of every task, as many as are given."""

    def reply(run: Run, sample: Sample) -> str:
        return "nothing" if int(sample.id[-5:]) < wrong.get(run.method, 0) else sample.answers[0]

    asked = {"models": ["llava"], "methods": list(wrong), "keeps": [0.25], "tasks": ["synth-ocr", "synth-choice"]}
    fill(folder, **{**asked, "n": 40, "reply": reply, **changes})
    return build_tables(folder)[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("results")


@pytest.fixture(scope="module")
def table(folder: Path) -> Table:
    return results(folder, {AS[name]: count for name, count in WRONG.items()})


@pytest.fixture(scope="module")
def page(folder: Path, table: Table) -> str:
    return build(folder)[-1].read_text()


# ---------------------------------------------------------------- what is concluded


def test_the_best_those_like_it_and_those_like_random(table: Table) -> None:
    (verdict,) = means_of(table).verdicts
    assert verdict.best.method == AS["good"]
    assert [row.method for row in verdict.alike] == [AS["like"]]
    assert [row.method for row in verdict.chance] == [AS["poor"]]
    assert [row.method for row in verdict.worse] == [AS["worse"]]
    assert sentences(verdict) == [
        ("divprune is the most accurate of 5 methods, at 100.0 %.", ()),
        ("Cannot be told from it (1):", ("hiprune",)),
        ("Cannot be told from random choice (1):", ("visionzip",)),
        ("Worse than random choice (1):", ("downsample",)),
    ]


def test_the_page_says_it_before_anything_else(page: str) -> None:
    said = page.index("divprune is the most accurate of 5 methods, at 100.0 %.")
    assert page.index('id="first"') < said < page.index('id="glance"')
    assert "Cannot be told from it (1): hiprune</p>" in page


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        (
            {"divprune": 0, "random": 30},
            ["Every other method can be told from it.", "Every method can be told from random choice."],
        ),
        (
            {"divprune": 19, "random": 20},
            ["No other method can be told from it.", "No method can be told from random choice."],
        ),
        ({"divprune": 0, "hiprune": 30}, ["Every other method can be told from it.", "Random choice was not run"]),
    ],
)
def test_sentences_where_all_or_none_differ(wrong: dict[str, int], expected: list[str], tmp_path: Path) -> None:
    (verdict,) = means_of(results(tmp_path, wrong)).verdicts
    said = [words for words, _ in sentences(verdict)][1:]
    assert len(said) == len(expected) and all(one.startswith(start) for one, start in zip(said, expected, strict=True))


def test_few_questions_tell_nothing_apart(tmp_path: Path) -> None:
    """All of two right against none of two: the interval knows that the next question may be different."""
    (verdict,) = means_of(results(tmp_path, {"divprune": 0, "random": 2}, n=2, tasks=["synth-ocr"])).verdicts
    assert [row.method for row in verdict.alike] == ["random"] == [row.method for row in [verdict.random] if row]


def test_methods_at_another_cost_are_not_compared(tmp_path: Path) -> None:
    """One that cuts inside the model at the same budget shows its first layers all tokens."""
    (verdict,) = means_of(results(tmp_path, {"divprune": 5, "random": 20, "fastv@2": 0})).verdicts
    assert verdict.best.method == "divprune" and len(verdict.rows) == 2


def test_nothing_is_concluded_of_one_method_or_without_vanilla(tmp_path: Path) -> None:
    alone = results(tmp_path / "alone", {"divprune": 0})
    assert means_of(alone).verdicts == ()
    assert "no method can be called the best" in build(tmp_path / "alone")[-1].read_text()
    results(tmp_path / "pruned", {"divprune": 0, "random": 3})
    for path in (tmp_path / "pruned").glob("runs/*/*/vanilla*.json"):
        path.unlink()
    (pruned,) = build_tables(tmp_path / "pruned")
    assert means_of(pruned).of == {} and 'id="first"' not in build(tmp_path / "pruned")[-1].read_text()


def test_a_mean_has_the_interval_of_its_cell_where_there_is_one_task(tmp_path: Path, table: Table) -> None:
    one = results(tmp_path, {"divprune": 4, "random": 9}, tasks=["synth-ocr"])
    means = means_of(one).of
    assert [means[id(row)] for row in one.rows] == [row.cells["synth-ocr"].value for row in one.rows]
    for row in table.rows:
        found, cells = means_of(table).of[id(row)], [cell.value for cell in row.cells.values()]
        assert found.value == pytest.approx(row.abs_mean) and found.low <= found.value <= found.high
        assert found.high - found.low < max(cell.high - cell.low for cell in cells), "two tasks say more than one"


def test_a_mean_of_tasks_that_are_all_right_stays_open(folder: Path, table: Table) -> None:
    groups, _ = groups_of(load_results(folder))
    found = mean_estimate([group.units for group in groups["divprune:0.25", None].values()])
    assert found.value == found.high == 100.0 and 85.0 < found.low < 99.0


# ---------------------------------------------------------------- the plot


def at(name: str, cost: float, mean: float, table: Table) -> Point:
    return Point(table.rows[0], name, cost, Estimate(mean, mean - 1, mean + 1))


def test_the_front_has_what_nothing_beats_at_its_cost(table: Table) -> None:
    places = {"a": (10, 50), "b": (20, 50), "c": (20, 60), "d": (30, 55), "e": (40, 70), "f": (40, 65)}
    points = [at(name, cost, mean, table) for name, (cost, mean) in places.items()]
    assert [point.name for point in front(points)] == ["a", "c", "e"]


def test_points_stand_where_they_are_and_have_their_figures(table: Table) -> None:
    means = means_of(table).of
    points = points_of(table, means, ENTERING)
    assert [(point.name, point.cost) for point in points][:2] == [("vanilla", 196.0), ("divprune", 49.0)]
    svg = scatter(points, ENTERING, styles(lines_of([table])), (760, 450))
    assert "<title>divprune:0.25: 100.0 % [" in svg and svg.count('<g class="point"') == len(table.rows)
    names = re.findall(r'<text class="name[^>]*>([^<]*)</text>', svg)
    assert sorted(names) == sorted(["vanilla", *lines_of([table])]), "few methods: every name has room"
    assert points_of(table, means, OPERATIONS) == [], "the operations of made-up runs are not known"


def test_names_never_overlap_however_many_there_are(table: Table) -> None:
    points = [at(f"method{k}", 20 + k % 13, 50 + k % 17, table) for k in range(180)]
    points += [
        at(f"a name as long as a recipe {k}", 60 + k, 90 + 0.1 * k, table) for k in range(20)
    ]  # all on the front
    svg = scatter(points, ENTERING, styles([point.name for point in points]), (760, 450))
    texts = re.findall(r'<text class="name([^"]*)" x="([\d.]+)" y="([\d.]+)"[^>]*>([^<]*)<', svg)
    boxes = [
        (float(x), float(y) - 10, float(x) + (7.3 if best else 6.7) * len(name), float(y) + 3)
        for best, x, y, name in texts
    ]
    assert any(best for best, *_ in texts)
    assert 20 < len(boxes) < 200 and svg.count("<title>") == 200
    for number, a in enumerate(boxes):
        for b in boxes[:number]:
            assert a[2] <= b[0] + 0.2 or b[2] <= a[0] + 0.2 or a[3] <= b[1] + 0.2 or b[3] <= a[1] + 0.2


def test_every_marker_has_a_shape_for_the_page() -> None:
    chosen = styles(["random", "random@2", "downsample", *(f"method{k}" for k in range(66))])
    assert {style.marker for style in chosen.values()} == set(PATHS)
    assert len({mark(style) for style in chosen.values()}) == len(chosen)


@pytest.mark.parametrize("tasks", [["synth-ocr"], ["synth-ocr", "synth-choice"]])
@pytest.mark.parametrize("count", [2, 30])
def test_a_legend_fits_however_few_tasks_there_are(tasks: list[str], count: int, tmp_path: Path) -> None:
    table = results(tmp_path, {f"random@{k}": 0 for k in range(1, count + 1)}, tasks=tasks, n=4)
    figure = accuracy_figure(table, "entering", styles(lines_of([table])))
    figure.draw_without_rendering()
    (legend,) = figure.legends
    inside, whole = legend.get_window_extent(), figure.bbox
    assert len(legend.get_texts()) == count + 2
    assert inside.x0 >= 0 and inside.x1 <= whole.x1 and inside.y0 >= 0
    assert all(plot.get_window_extent().height > 100 for plot in figure.axes if plot.get_visible())
    assert not accuracy_figure(table, "entering", styles(lines_of([table])), legend=False).legends


def test_a_line_of_a_plot_can_be_found_to_hide_it(table: Table) -> None:
    style = styles(lines_of([table]))
    svg = inline_svg(accuracy_figure(table, "entering", style, legend=False), "m1-entering")
    found = re.findall(r'data-line="(\d+)"', svg)
    assert {int(number) for number in found} == set(range(len(style)))
    assert len(found) == len(style) * len(table.tasks) * 2, "its line and its intervals, in every plot"


# ---------------------------------------------------------------- the document


class Document(HTMLParser):
    """Tables as texts of their cells, and the attributes of all tags."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tables: list[list[list[str]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_data(self, data: str) -> None:
        if self.tables and self.tables[-1] and self.tables[-1][-1]:
            self.tables[-1][-1][-1] += " ".join(data.split()) + " "


def test_at_a_glance_a_figure_has_a_column_and_its_interval_behind_it(page: str) -> None:
    first = Document(page).tables[0]
    assert [text.strip() for text in first[0]] == ["method", "keep 25.0 %"]
    assert [text.strip() for text in first[1]] == ["abs", "rel", "kept", "entering"]
    line = next(row for row in first if row[0].strip() == "random")
    assert re.fullmatch(r"50\.0 +\[\d\d\.\d, \d\d\.\d\] +", line[1])
    assert [text.strip() for text in line[2:]] == ["50.0 %", "49.0", "49.0"]


def test_recipes_with_their_own_budgets_are_rows(tmp_path: Path) -> None:
    table = results(tmp_path, {"divprune": 4, "random": 9})
    rows = [
        replace(row, keep=None, recipe="divprune:0.5 > fastv@2:0.3") if row.method == "divprune" else row
        for row in table.rows
    ]
    table = replace(table, rows=tuple(rows))
    assert [row.recipe for row in own_budgets(table)] == ["divprune:0.5 > fastv@2:0.3"]
    found = as_asked(shown.blocks(table))
    assert found is not None and found.titles == ("keep 25.0 %",)
    assert [name for name, _ in found.lines] == ["vanilla", "random"]
    assert all(row is not None for _, line in found.lines for row in line), "no cell of dashes"


def test_a_sign_is_explained_only_under_the_table_where_it_stands(page: str, table: Table) -> None:
    (block,) = shown.blocks(table)
    signs = [sign for sign, _ in marks_of(block)]
    assert signs == ["‡", "*"]
    for sign, meaning in shown.FLAGS.items():
        assert unescape(page).count(meaning) == (sign in signs), sign


def test_heads_stand_over_their_columns(page: str) -> None:
    for one in Document(page).tables:
        grouped = len(one[0]) < len(one[-1])  # the second row of heads has all columns but the first
        heads, rows = (1 + len(one[1]), one[2:]) if grouped else (len(one[0]), one[1:])
        assert {len(row) for row in rows} == {heads}, one[0]


def test_flipped_answers_have_a_small_picture_stored_once(page: str) -> None:
    found = Document(page)
    ids = [values["id"] for tag, values in found.tags if tag == "image" and "-t" in (values.get("id") or "")]
    used = [values["href"] for tag, values in found.tags if tag == "use" and "-t" in (values.get("href") or "")]
    assert ids and len(ids) == len(set(ids)) and {f"#{one}" for one in ids} == set(used) and len(used) > len(ids)


def test_every_question_is_in_the_page_with_every_reply(page: str, table: Table) -> None:
    (text,) = re.findall(r'<script type="application/json">(.*?)</script>', page, re.S)
    data = json.loads(text)
    assert [name for name, _ in data["rows"]] == list(AS.values()) and len(data["questions"]) == 80
    for place, name in enumerate(WRONG):
        assert sum(question[8][place] == "0" for question in data["questions"]) == 2 * WRONG[name]
    result = table.rows[0].cells["synth-ocr"].result
    (first, *_) = load_records(result)
    task, category, question, answer, reply, right = data["questions"][0][:6]
    said = [data["texts"][number] for number in (task, category, question, answer, reply)]
    assert said == ["synth-ocr", first.category, first.question, first.answers[0], first.output] and right == 1
    drawn = [question[6] for question in data["questions"] if question[6]]
    assert drawn and all(f'<image id="{name}"' in page for name in drawn)


def test_of_too_many_questions_the_first_of_each_task_are_shown_and_it_is_said(
    page: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert "questions, evenly from the tasks" not in page
    monkeypatch.setattr("vlmprune.report.browse.MOST", 20 * len(AS))
    results(tmp_path, {AS[name]: count for name, count in WRONG.items()})
    cut = build(tmp_path)[-1].read_text()
    assert "Here are the first 20 of 80 questions, evenly from the tasks" in cut
    (text,) = re.findall(r'<script type="application/json">(.*?)</script>', cut, re.S)
    data = json.loads(text)
    tasks = [data["texts"][question[0]] for question in data["questions"]]
    assert tasks == ["synth-ocr"] * 10 + ["synth-choice"] * 10


def test_what_a_model_says_cannot_end_the_data(tmp_path: Path) -> None:
    evil = "</script><script>alert(1)</script>"
    fill(tmp_path, models=["llava"], methods=["divprune"], keeps=[0.5], tasks=["synth-ocr"], n=2, reply=lambda *_: evil)
    found = build(tmp_path)[-1].read_text()
    assert (
        "alert(1)</script>" not in found
        and evil in json.loads(re.findall(r'<script type="application/json">(.*?)</script>', found, re.S)[0])["texts"]
    )


def test_only_the_same_question_gets_its_picture_again(table: Table) -> None:
    result = table.rows[0].cells["synth-ocr"].result
    asked = {record.id: record.question for record in load_records(result)}
    found = redrawn(result, asked)
    assert set(found) == set(asked) and {picture.size for picture in found.values()} == {(112, 112)}
    first = next(iter(asked))
    assert redrawn(result, {first: "another question"}) == {}
    assert redrawn(replace(result, version=result.version + 1), asked) == {}
    assert redrawn(replace(result, task="textvqa"), asked) == {} == redrawn(replace(result, canvas=""), asked)


def test_every_choice_has_its_part_and_every_button_its_marks(page: str) -> None:
    tags = Document(page).tags
    parts = {values["data-part"] for _, values in tags if "data-part" in values}
    alone = {part for part in parts if part.endswith("-1") and f"{part[:-1]}2" not in parts}  # nothing to choose
    assert {values["data-show"] for tag, values in tags if "data-show" in values} == parts - alone
    toggles = {values["data-toggle"] for _, values in tags if "data-toggle" in values}
    assert toggles == {values["data-line"] for _, values in tags if "data-line" in values}
    assert all(values.get("type") == "button" for tag, values in tags if tag == "button"), "keys press buttons"


def test_levels_come_from_methods_that_cut_before_the_model(table: Table) -> None:
    assert [level.tokens for level in levels_of(table)] == [49.0]
