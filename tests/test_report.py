"""The report: exact tables, plots, a page that needs nothing but itself, the same bytes every time."""

from __future__ import annotations

import csv
import io
import json
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from fake_results import fill
from PIL import Image
from tiny_folder import save_llava

from vlmprune.ask import write_examples
from vlmprune.ask.scenes import load_examples
from vlmprune.bench.compare import build_tables
from vlmprune.bench.load import load_model
from vlmprune.bench.store import Run
from vlmprune.bench.table import Table
from vlmprune.core.errors import UserError
from vlmprune.core.outputs import FOLDER_MARK
from vlmprune.data.sample import Sample
from vlmprune.report import build, comma_separated
from vlmprune.report import tables as shown
from vlmprune.report.flips import flips
from vlmprune.report.latex import escape, latex
from vlmprune.report.markdown import markdown
from vlmprune.report.plots import accuracy_figure, lines_of, styles, svg

SMALL: dict[str, Any] = {"models": ["llava"], "methods": ["random"], "keeps": [0.25], "n": 4}


def right_but(*wrong: int) -> Any:
    """Vanilla is right everywhere; a method is wrong on the samples of these numbers."""

    def reply(run: Run, sample: Sample) -> str:
        is_wrong = run.method != "vanilla" and int(sample.id[-5:]) in wrong
        return "nothing of the kind" if is_wrong else sample.answers[0]

    return reply


def small(folder: Path, reply: Any = None, **changes: Any) -> list[Table]:
    fill(folder, **{**SMALL, "tasks": ["synth-ocr"], "reply": reply or right_but(0), **changes})
    return build_tables(folder)


# ---------------------------------------------------------------- tables


def test_markdown_to_the_letter(tmp_path: Path) -> None:
    expected = """\
## llava

synth-ocr: accuracy, n = 4, chance 5.0.

| method | 25.0 %: abs_mean (rel_mean) | kept / entering |
| --- | ---: | ---: |
| vanilla | 100.0 (100.0 %) | 196.0 / 196.0 |
| random | 75.0 (75.0 %) | 49.0 / 49.0 |

### llava, keep 25.0 %

| method | kept | entering | FLOPs | 4nd²+2n²d+2ndm | +3ndm | synth-ocr | abs_mean | rel_mean |
| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
| vanilla | 196.0 | 196.0 | – | – | – | 100.0 (100.0 %) [45.4, 100.0] | 100.0 | 100.0 % |
| random | 49.0 | 49.0 | – | – | – | 75.0 (75.0 %) [28.9, 96.6] | 75.0 | 75.0 % |

Difference to vanilla on the same questions, in points, with its 95 % interval and its p-value after Holm's correction \
over the methods:

| method | synth-ocr |
| --- | ---: |
| random | −25.0 [−80.9, +54.2], p 1.000 |

Loyalty: the same answer as vanilla's, percent of the questions:

| method | synth-ocr |
| --- | ---: |
| random | 75.0 |
"""
    assert markdown(small(tmp_path)).endswith(expected)


def test_csv_to_the_letter(tmp_path: Path) -> None:
    lines = comma_separated.summary(small(tmp_path)).splitlines()
    assert lines[0].startswith(
        "model,method,keep,budget,recipe,seeds,task,dimension,protocol,metric,chance,in_averages,n,units"
    )
    common = "synth-ocr,OCR,plain,accuracy,5.000,1,4,4"
    means = {"llava,vanilla": "100.000,,100.000,,", "llava,random": "75.000,,75.000,,"}
    assert lines[1:] == [
        f"llava,vanilla,1.0,own,vanilla,,{common},100.000,45.405,100.000,,,,100.000,,,,,,,,,100.000,,,0.000,"
        f"196.000,196.000,196.000,,,,{means['llava,vanilla']}",
        f"llava,random,0.25,own,random:0.25,0,{common},75.000,28.914,96.591,,,,75.000,-25.000,-80.948,54.186,McNemar,1,1,0,"
        f"75.000,75.000,,,0.000,196.000,49.000,49.000,,,,{means['llava,random']}",
    ]


def test_csv_has_a_line_for_every_run(tmp_path: Path) -> None:
    tables = small(tmp_path, models=["a", "b"], methods=["random", "fastv@2"], keeps=[0.5, 8], tasks=["synth-pope"])
    rows = list(csv.DictReader(io.StringIO(comma_separated.summary(tables))))
    assert len(rows) == 2 * (1 + 2 * 2)
    assert {row["keep"] for row in rows} == {"1.0", "0.5", "8"}
    kinds = list(csv.DictReader(io.StringIO(comma_separated.categories(tables))))
    assert {row["category"] for row in kinds} == {"exist"} and len(kinds) == len(rows)


def test_latex_to_the_letter(tmp_path: Path) -> None:
    body = latex(small(tmp_path, models=["my_model & co"]))
    assert r"\caption{my\_model \& co, keep 25.0 \%. Primary metric in percent," in body
    assert r"random & 49.0 & 49.0 & 75.0 {\tiny (75.0 \%)} & 75.0 & 75.0 \% \\" in body
    assert r" &  &  & {\tiny [28.9, 96.6]} &  &  \\" in body
    assert "random & $-$25.0 \\\\\n & {\\tiny [$-$80.9, +54.2], p 1.000} \\\\" in body
    assert body.count(r"\begin{") == body.count(r"\end{")


def test_latex_escapes_everything_special() -> None:
    special = "\\ & % $ # _ { } ~ ^ < >"
    escaped = escape(special)
    assert escaped == (
        r"\textbackslash{} \& \% \$ \# \_ \{ \} \textasciitilde{} \textasciicircum{} \textless{} \textgreater{}"
    )
    assert escape("divprune:0.3 > fastv@2:0.3") == r"divprune:0.3 \textgreater{} fastv@2:0.3"
    assert escape("−1.0 –") == "$-$1.0 --"


@pytest.mark.parametrize(
    ("value", "text"), [(0.04, "0.0"), (-0.04, "0.0"), (12.345, "12.3"), (None, "–"), (float("nan"), "–")]
)
def test_numbers_have_one_form(value: float | None, text: str) -> None:
    assert shown.number(value) == text


def test_signed_numbers() -> None:
    assert [shown.signed_number(value) for value in (1.25, -3.4, -0.01, None)] == ["+1.2", "−3.4", "0.0", "–"]


def test_a_ratio_above_the_limit_is_flagged(tmp_path: Path) -> None:
    def reply(run: Run, sample: Sample) -> str:
        return "9" if run.method == "vanilla" and sample.id.endswith(("0", "1")) else sample.answers[0]

    text = markdown(small(tmp_path, reply))
    assert "| 100.0† (200.0 %)" in text and "- † above 105 % of vanilla" in text and "‡" not in text


def test_unparsed_replies_are_flagged(tmp_path: Path) -> None:
    text = markdown(small(tmp_path, tasks=["synth-pope"]))
    assert "‡ (" in text and "- ‡ more than 2 % of the replies" in text


def test_a_task_near_chance_is_left_out_and_named(tmp_path: Path) -> None:
    def reply(run: Run, sample: Sample) -> str:
        return "yes" if run.task == "synth-pope" else sample.answers[0]

    tables = small(tmp_path, reply, tasks=["synth-ocr", "synth-pope"], n=20)
    text = markdown(tables)
    assert "- llava: synth-pope is left out of the averages (unpruned" in text
    assert "| random | 100.0 (100.0 %) |" in text


def test_budgets_are_ordered_and_recipes_come_last(tmp_path: Path) -> None:
    (table,) = small(tmp_path, keeps=[0.1, 64, 0.5, 8])
    assert [block.title for block in shown.blocks(table)] == ["50.0 %", "10.0 %", "64 tokens", "8 tokens"]
    assert all(block.rows[0].is_vanilla for block in shown.blocks(table))
    assert shown.budget_words(None) == shown.OWN_BUDGETS


# ---------------------------------------------------------------- flipped answers, plots


def test_flips_are_counted_against_vanilla(tmp_path: Path) -> None:
    def reply(run: Run, sample: Sample) -> str:
        number = int(sample.id[-5:])
        wrong = {5} if run.method == "vanilla" else {0, 3}
        return "9" if number in wrong else sample.answers[0]

    (table,) = small(tmp_path, reply, n=8, tasks=["synth-ocr", "synth-choice"])
    (found,) = flips(table)
    assert found.n == 16 and [flip.id for flip in found.repaired] == ["synth-ocr/00005", "synth-choice/00005"]
    assert sum(kind.broken for kind in found.kinds) == 4 and sum(kind.n for kind in found.kinds) == 16
    lines = list(csv.DictReader(io.StringIO(comma_separated.flipped([(table, [found])]))))
    assert [line["flip"] for line in lines].count("broken") == 4 and lines[0]["question"] and len(lines) == 6
    assert [flip.id for flip in found.broken] == [
        "synth-ocr/00000",
        "synth-choice/00000",
        "synth-ocr/00003",
        "synth-choice/00003",
    ]
    assert found.broken[0].after == "9" and found.broken[0].before == found.broken[0].answer


def test_plots_are_the_same_every_time_and_carry_no_date(tmp_path: Path) -> None:
    (table,) = small(tmp_path, methods=["random", "divprune"], keeps=[0.5, 0.25])
    style = styles(lines_of([table]))
    first, second = (svg(accuracy_figure(table, "kept", style)) for _ in range(2))
    assert first == second and "<dc:date>" not in first


def test_styles_tell_methods_apart() -> None:
    names = ["random", "random@2", "downsample", *(f"method{k}" for k in range(66))]
    chosen = styles(names)
    assert len({(style.color, style.marker) for style in chosen.values()}) == len(names)


def test_another_meaning_of_the_budget_is_another_line(tmp_path: Path) -> None:
    (table,) = small(tmp_path, methods=["random", "divprune"], keeps=[0.5, 0.25])
    rows = [replace(row, budget="mean") if row.method != "vanilla" and row.keep == 0.25 else row for row in table.rows]
    table = replace(table, rows=tuple(rows))
    lines = lines_of([table])
    assert lines == ["random", "random (mean)", "divprune", "divprune (mean)"] and len(set(styles(lines).values())) == 4
    (plot,) = accuracy_figure(table, "kept", styles(lines)).axes
    drawn = {line.get_label(): len(line.get_xdata()) for line in plot.get_lines()}
    assert [drawn[line] for line in lines] == [1] * 4


@pytest.mark.parametrize("count", [8, 40])
def test_a_method_stands_at_its_tokens_however_many_there_are(count: int, tmp_path: Path) -> None:
    names = [f"random@{k}" for k in range(1, count + 1)]
    (table,) = small(tmp_path, methods=names, keeps=[0.25], tasks=["synth-ocr"])
    (plot,) = accuracy_figure(table, "kept", styles(names)).axes
    lines = {line.get_label(): line.get_xdata()[0] for line in plot.get_lines() if line.get_label() in names}
    assert len(lines) == count and set(lines.values()) == {49.0}
    bars = {bar.get_segments()[0][0][0] for bar in plot.collections}
    assert len(bars) == (8 if count == 8 else 0), "side by side; so many intervals would hide one another"
    assert all(abs(x - 49) < 0.05 * 49 for x in bars)


# ---------------------------------------------------------------- seeds, hard questions, ranks, tests


def by_number(wrong: Any) -> Any:
    """Wrong on the samples of these numbers, by method and seed."""

    def reply(run: Run, sample: Sample) -> str:
        return "9" if int(sample.id[-5:]) in wrong(run.method, run.seed) else sample.answers[0]

    return reply


def test_several_seeds_are_one_row_with_its_spread(tmp_path: Path) -> None:
    missed = {0: {1}, 1: {1, 2}, 2: {1, 2, 3}}
    reply = by_number(lambda method, seed: missed.get(seed, set()))
    tables = small(tmp_path, reply, methods=["random", "divprune"], seeds=(0, 1, 2), n=10)
    (table,) = tables
    _, random, divprune = table.rows
    assert random.seeds == (0, 1, 2) and divprune.seeds == () and divprune.rel_spread is None
    assert random.rel_mean == pytest.approx(80) and random.cells["synth-ocr"].loyalty == pytest.approx(80)
    text = markdown(tables)
    assert "; sd 10.0, 70.0 to 90.0 over 3 seeds" in text and "Mean over the seeds 0, 1, 2: random." in text
    (line,) = [row for row in csv.DictReader(io.StringIO(comma_separated.summary(tables))) if row["seeds"] == "0 1 2"]
    assert (line["value"], line["sd"], line["rel_mean_sd"], line["test"]) == (
        "80.000",
        "10.000",
        "10.000",
        "permutation",
    )
    assert "over 3 seeds" in latex(tables) and "over 3 seeds" in build(tmp_path)[-1].read_text()
    assert {flip.seed for flip in flips(table)[0].broken} == {0, 1, 2}


def test_accuracy_on_what_downsampling_gets_wrong(tmp_path: Path) -> None:
    missed = {"downsample": range(12), "divprune": range(9), "random": {15}}
    reply = by_number(lambda method, seed: missed.get(method, ()))
    tables = small(tmp_path, reply, methods=["downsample", "divprune", "random"], n=20)
    assert "| divprune | 55.0 / 25.0, n = 12 |" in markdown(tables)
    assert "| vanilla | 100.0 / 100.0, n = 12 |" in markdown(tables)
    rows = {row["method"]: row for row in csv.DictReader(io.StringIO(comma_separated.summary(tables)))}
    assert (rows["random"]["accuracy"], rows["random"]["hard_accuracy"]) == ("95.000", "100.000")
    few = small(tmp_path / "few", by_number(lambda method, seed: range(9)), methods=["downsample"], n=20)
    assert "| downsample | 55.0 / –, n = 9 |" in markdown(few)
    assert "downsample" not in markdown(small(tmp_path / "none", n=20)).split("## llava")[1]


def test_holm_goes_over_the_methods_of_one_budget_and_task(tmp_path: Path) -> None:
    reply = by_number(lambda method, seed: range(6) if method == "random" else range(8) if method == "fastv@2" else ())
    tables = small(tmp_path, reply, methods=["random", "fastv@2", "divprune"], keeps=[0.5, 0.25], n=24)
    rows = [row for row in csv.DictReader(io.StringIO(comma_separated.summary(tables))) if row["p"]]
    assert {(row["method"], row["p"], row["p_holm"]) for row in rows} == {
        ("random", "0.0312", "0.0625"),
        ("fastv@2", "0.00781", "0.0234"),
        ("divprune", "1", "1"),
    }
    text = markdown(tables)
    assert r"−33.3\* [" in text and "−25.0 [" in text and r"- \* significantly different" in text
    assert r"\textbf" not in latex(tables), "the best is not for a table to say"


def test_ranks_are_in_every_form(tmp_path: Path) -> None:
    reply = by_number(lambda method, seed: range(10) if method == "random" else ())
    tables = small(tmp_path, reply, methods=["random", "divprune"], n=20)
    assert "| divprune | 100.0 % | 1.0 [1.0, 1.0] |" in markdown(tables)
    assert "llava,0.25,own,rel_mean,divprune,divprune:0.25,100.000,1.000,1.000,1.000" in comma_separated.ranks(tables)
    page = build(tmp_path)[-1].read_text()
    assert "Which method is best" in page and "divprune, best in 100 %" in page
    assert (tmp_path / "report" / "plots" / "llava-ranks.png").exists()


# ---------------------------------------------------------------- the folder


def files_of(folder: Path) -> dict[str, bytes]:
    report = folder / "report"
    written = (path for path in sorted(report.rglob("*")) if path.is_file() and path.name != FOLDER_MARK)
    return {str(path.relative_to(report)): path.read_bytes() for path in written}


EXAMPLE = {
    "picture": "llava-1.png",
    "size": (40, 20),
    "window": (0, 0, 40, 20),
    "question": "what <b>color</b> is it ?",
    "kind": "words",
    "options": (),
    "answer": "red",
    "replies": {
        "vanilla": {"recipe": "vanilla", "text": "red", "right": True, "tokens": (8, 8), "entering": 8.0, "stages": ()},
        "random:0.25": {
            "recipe": "random:0.25",
            "text": "<script>alert(1)</script>",
            "right": False,
            "tokens": (8, 2),
            "entering": 2.0,
            "stages": [{"layer": 0, "rows": 2, "cols": 4, "kept": (1, 6), "whole": False}],
        },
    },
}


def add_example(folder: Path) -> None:
    (folder / "examples").mkdir()
    Image.new("RGB", (40, 20), "teal").save(folder / "examples" / "llava-1.png")
    content = {"schema": 1, "model": "llava", "weights": "", "scenes": [EXAMPLE]}
    (folder / "examples" / "llava.json").write_text(json.dumps(content))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    small(folder, right_but(0, 1), tasks=["synth-ocr", "synth-choice"])
    add_example(folder)
    paths = build(folder)
    assert sorted(paths) == sorted(folder / "report" / name for name in files_of(folder))
    assert paths[-1].name == "index.html"
    return folder


def test_everything_is_written(built: Path) -> None:
    assert list(files_of(built)) == [
        "categories.csv",
        "flips.csv",
        "index.html",
        "overlays/llava-1.png",
        "plots/llava-entering.png",
        "plots/llava-entering.svg",
        "plots/llava-kept.png",
        "plots/llava-kept.svg",
        "ranks.csv",
        "summary.csv",
        "summary.md",
        "summary.tex",
    ]


def test_the_same_results_give_the_same_bytes(built: Path, tmp_path: Path) -> None:
    small(tmp_path, right_but(0, 1), tasks=["synth-ocr", "synth-choice"])
    add_example(tmp_path)
    build(tmp_path)
    assert files_of(tmp_path) == files_of(built)


class References(HTMLParser):
    """Every address that a page would load or point to, its ids, and the balance of its tags."""

    VOID = {"meta", "link", "img", "br", "hr", "input"}

    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.addresses += [values[name] or "" for name in ("src", "href", "xlink:href", "action") if name in values]
        self.ids += [values["id"] or ""] if "id" in values else []
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open = self.open[:-1] if tag not in self.VOID else self.open

    def handle_endtag(self, tag: str) -> None:
        if tag not in {"p", "li", "dt", "dd"} or self.open[-1] == tag:
            assert self.open.pop() == tag


def test_the_page_needs_nothing_but_itself(built: Path) -> None:
    page = (built / "report" / "index.html").read_text()
    found = References(page)
    assert not found.open, "every tag is closed"
    assert len(found.ids) == len(set(found.ids))
    for address in found.addresses:
        assert address.startswith(("#", "data:image/png;base64,")), address
        assert not address.startswith("#") or address[1:] in found.ids, address
    assert not re.search(r"@import|url\((?!#)|<link|<iframe|fetch\(|import\(", page)


def test_the_page_shows_what_was_kept_and_escapes_replies(built: Path) -> None:
    page = (built / "report" / "index.html").read_text()
    assert 'd="M1 0h1v1h-1zM2 1h1v1h-1z"' in page and "scale(10 10)" in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page and "<script>alert" not in page
    assert "what &lt;b&gt;color&lt;/b&gt; is it ?" in page
    assert "2 of 8 tokens, before the LLM" in page
    assert "4 broken, 0 repaired of 8" in page and "nothing of the kind" in page
    assert "<td>synth-choice</td><td>mcq</td><td>4</td><td>2</td><td>0</td>" in page


def test_a_report_without_examples_or_vanilla(tmp_path: Path) -> None:
    small(tmp_path)
    for path in tmp_path.glob("runs/*/*/vanilla*.json"):
        path.unlink()
    page = build(tmp_path)[-1].read_text()
    assert "What was kept" not in page and "the unpruned model has not been run" in page
    assert "–" in (tmp_path / "report" / "summary.md").read_text()


def test_an_undefined_metric_is_a_dash(tmp_path: Path) -> None:
    """F1 of one question whose answer is no, answered no, has no value."""

    def only_no(run: Run, sample: Sample) -> str:
        return "no"

    fill(tmp_path, **{**SMALL, "n": 40}, tasks=["synth-pope"], reply=only_no)
    for path in tmp_path.glob("runs/*/*/*.jsonl"):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        said = [{**line, "answers": ["no"]} for line in lines]
        path.write_text("".join(json.dumps(line) + "\n" for line in said))
    build(tmp_path)
    assert "synth-pope is left out of the averages (F1 has no value" in (tmp_path / "report/summary.md").read_text()
    assert "| vanilla | 196.0 | 196.0 | – | – | – | – (–) [–, –] |" in (tmp_path / "report" / "summary.md").read_text()


def test_vanilla_alone(tmp_path: Path) -> None:
    small(tmp_path, methods=[])
    assert "| vanilla |" in build(tmp_path)[0].read_text()


@pytest.mark.parametrize("name", ["missing", "empty"])
def test_a_folder_without_results(name: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=name):
        build(tmp_path / name)


@pytest.mark.parametrize(
    ("pattern", "text"),
    [("runs/*/*/*.json", "{"), ("runs/*/*/*.json", '{"schema": 1}'), ("runs/*/*/*.jsonl", "{}\n"), ("comp*.json", "{")]
    + [("comp*.json", text) for text in ("[]", "{}", '{"methods": [], "settings": 3}')],
)
def test_broken_results_are_named(pattern: str, text: str, tmp_path: Path) -> None:
    small(tmp_path)
    path = next(tmp_path.glob(pattern))
    path.write_text(text)
    with pytest.raises(UserError, match=re.escape(path.name)):
        build(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", '{"schema": 1, "scenes": [{}]}'])
def test_broken_examples(text: str, tmp_path: Path) -> None:
    small(tmp_path)
    add_example(tmp_path)
    (tmp_path / "examples" / "llava.json").write_text(text)
    with pytest.raises(UserError, match=r"llava\.json"):
        build(tmp_path)


def test_a_lost_example_picture(tmp_path: Path) -> None:
    small(tmp_path)
    add_example(tmp_path)
    (tmp_path / "examples" / "llava-1.png").unlink()
    with pytest.raises(UserError, match=r"llava-1\.png"):
        build(tmp_path)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    small(tmp_path)
    (tmp_path / "report").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        build(tmp_path)


def test_nothing_heavy_is_imported_before_it_is_used() -> None:
    script = (
        "import sys, vlmprune, vlmprune.report\n"
        "print([name for name in ('matplotlib', 'jinja2', 'torch', 'PIL') if name in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"


def test_a_report_runs_no_model(built: Path) -> None:
    """Written once more where transformers cannot be imported."""
    before = files_of(built)
    script = (
        "import sys; sys.modules['transformers'] = None\n"
        f"from vlmprune.cli import main; sys.exit(main(['report', {str(built)!r}]))"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
    assert files_of(built) == before


def test_pictures_of_older_results_go_and_those_of_others_stay(tmp_path: Path) -> None:
    fill(tmp_path, ["llava"], ["random"], keeps=[0.25], tasks=["synth-ocr"], n=4)
    report = tmp_path / "report"
    first = {path.relative_to(report) for path in build(tmp_path)}
    old = ("plots/gone-entering.svg", "plots/gone-ranks.png", "overlays/gone-2.png")
    for name in (*old, "plots/mine.svg", "overlays/my.png"):
        (report / name).write_text("older")
    assert {path.relative_to(report) for path in build(tmp_path)} == first
    files = [path for path in report.rglob("*") if path.is_file()]
    left = {str(path.relative_to(report)) for path in files if path.read_bytes() == b"older"}
    assert left == {"plots/mine.svg", "overlays/my.png"}


# ---------------------------------------------------------------- examples


def test_examples_are_made_once_and_extended(tmp_path: Path) -> None:
    loaded = replace(load_model(str(save_llava(tmp_path / "model"))), name="a/model")
    folder = tmp_path / "results"

    def write(*recipes: str, weights: str = "w") -> list[Path]:
        return write_examples(folder, replace(loaded, weights=weights), recipes)

    paths = write("random:0.2", "downsample:9")
    assert [path.name for path in paths] == ["a_model.json", *(f"a_model-{k}.png" for k in (1, 2, 3))]
    first = load_examples(folder, "a/model")
    assert len(first) == 3 and all(set(e.replies) == {"vanilla", "random:0.2", "downsample:9"} for e in first)
    stage = first[0].replies["random:0.2"].stages[0]
    assert (stage.rows, stage.cols, len(stage.kept)) == (7, 7, 10)
    coarse = first[0].replies["downsample:9"].stages[0]
    assert coarse.whole and coarse.rows * coarse.cols == len(coarse.kept) <= 9

    stamp = paths[0].stat().st_mtime_ns
    write("random:0.2")
    assert paths[0].stat().st_mtime_ns == stamp, "nothing to do, nothing written"
    write("random:0.2", "divprune:0.5 > fastv@2:0.5")
    second = load_examples(folder, "a/model")
    assert second[0].replies["random:0.2"] == first[0].replies["random:0.2"]
    assert [stage.layer for stage in second[0].replies["divprune:0.5 > fastv@2:0.5"].stages] == [0, 2]
    write("random:0.2", weights="other")
    assert set(load_examples(folder, "a/model")[0].replies) == {"vanilla", "random:0.2"}
