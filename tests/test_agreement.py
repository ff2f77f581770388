"""The order of the methods beside the one that papers print, and methods at equal mean tokens, on made-up numbers."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fake_results import fill

from vlmprune import published
from vlmprune.bench.compare import build_tables
from vlmprune.bench.ranks import spearman
from vlmprune.bench.store import Run
from vlmprune.bench.table import Row, Table
from vlmprune.data.sample import Sample
from vlmprune.published.averages import Average, Averages, averages
from vlmprune.report import build
from vlmprune.report.agreement import ASKED, BEFORE, MEAN, agreements, compared, uncompared
from vlmprune.report.agreement_text import PREPARED, lines, sentences
from vlmprune.report.beside import same_budget
from vlmprune.report.markdown import markdown
from vlmprune.report.means import equal_means
from vlmprune.report.page import render
from vlmprune.report.plots import lines_of, styles

TABLE2 = next(paper for paper in averages() if paper.source == "HiPrune")
SHARED = {"hiprune": 0, "visionzip": 1, "trim": 2, "hired": 3, "tome(inside=True)": 4}  # by HiPrune's table at 11.1 %


def row(method: str, mean: float, kept: float | None = None, keep: float = 1 / 3, rel: float = 90.0) -> Row:
    """A row with a mean share of 576 tokens, and a share kept, the same unless it is given."""
    left = 576 * (mean if kept is None else kept)
    return Row(method, keep, f"{method}:{keep}", {}, 576.0, left, 576 * mean, None, rel, rel)


def paper(*methods: str, share: float = 1 / 3) -> Averages:
    return Averages("Made", "1", "LLaVA-1.5-7B", tuple(Average(m.upper(), (m,), share, 90.0) for m in methods))


# ---------------------------------------------------------------- correlation


def test_spearman_by_hand() -> None:
    printed = np.array([4.0, 3.0, 2.0, 1.0])
    values = np.array([[9.0, 8.0, 7.0, 6.0], [6.0, 7.0, 8.0, 9.0], [9.0, 8.0, 6.0, 7.0]])
    assert spearman(values, printed) == pytest.approx([1.0, -1.0, 1 - 6 * 2 / (4 * 15)])
    assert spearman(values[2], printed) == pytest.approx(0.8)
    ties = np.array([5.0, 5.0, 3.0, 1.0])  # ranks 1.5, 1.5, 3, 4 against 1, 2, 3, 4: 4.5 / sqrt(4.5 * 5)
    assert spearman(ties, printed) == pytest.approx(4.5 / np.sqrt(22.5))
    assert np.isnan(spearman(np.ones(4), printed))


# ---------------------------------------------------------------- printed averages


def test_averages_are_the_printed_ones_but_for_the_known_errors() -> None:
    off = []
    for table in averages():
        entry = next(e for e in published.read_rows("averages") if (e["source"], e["table"]) == table[:2])
        printed = {
            (r["method"], r["budget"]): float(r["value"])
            for r in published.read_rows("results")
            if (r["source"], r["table"], r["metric"]) == (*table[:2], entry["average"]) and r["model"] == table.model
        }
        whole = next(value for (method, _), value in printed.items() if method == "vanilla")
        for one in table.rows:
            value = 100 * printed[one.method, f"{round(576 * one.share)} tokens"] / whole
            if abs(value - one.value) > 0.15:
                off.append((table.source, one.method, round(one.value * whole / 100, 2)))
    assert off == [("UniPruneBench", "Random", value) for value in (49.77, 48.62, 41.97)]
    assert [(len(t.rows), t.title) for t in averages()] == [
        (27, "UniPruneBench, table 1"),
        (24, "HiPrune, table 2"),
        (14, "AutoPrune, table 1"),
    ]


def test_tome_of_the_papers_runs_inside_the_tower_and_every_method_has_a_recipe() -> None:
    ours = {one.method: one.ours for table in averages() for one in table.rows}
    assert ours["ToMe"] == ("tome(inside=True)",) and all(ours.values())
    assert len(ours["FastV"]) == 2


# ---------------------------------------------------------------- which runs are held against what


def test_a_method_inside_the_model_is_compared_where_its_mean_is_near() -> None:
    rows = [row(name, 1 / 3) for name in ("a", "b", "c")]
    inside = [row("d", 0.5, 1 / 3), row("d", 0.34, 1 / 9, keep=1 / 9)]
    printed = paper("a", "b", "c", "d")
    assert compared([*rows, *inside], printed, MEAN)[3].row is inside[1]
    assert compared([*rows, *inside], printed, ASKED)[3].row is inside[0]
    assert compared([*rows, *inside], printed, BEFORE) == (), "three methods say nothing"
    assert compared([*rows, inside[0]], printed, MEAN) == ()
    assert compared([*rows, row("d", 0.38)], printed, MEAN) and not compared([*rows, row("d", 0.39)], printed, MEAN)


def test_a_run_without_all_tasks_or_with_another_count_is_not_as_asked() -> None:
    rows, printed = [row(name, 1 / 3) for name in ("a", "b", "c", "d")], paper("a", "b", "c", "d")
    assert len(compared(rows, printed, ASKED)) == 4
    assert compared([*rows[:3], replace(rows[3], rel_mean=None)], printed, ASKED) == ()
    assert compared([*rows[:3], replace(rows[3], budget="mean")], printed, ASKED) == ()
    assert compared([*rows[:3], replace(rows[3], keep=192)], printed, ASKED), "192 of 576 tokens are a third"
    assert compared([*rows[:3], replace(rows[3], keep=0.35)], printed, ASKED) == ()


def test_what_could_not_be_compared_is_said() -> None:
    found = Table("llava", (), (), {}, (row("a", 1 / 3), row("b", 0.6, 1 / 3)))
    printed = Averages(*paper()[:3], (*paper("a", "b", "c").rows, Average("D", (), 1 / 3, 90.0)))
    assert uncompared(found, printed) == [
        "B (its runs show a layer 60.0 % of the tokens)",
        "C (c was not run on all tasks)",
        "D (no recipe here is it)",
    ]


# ---------------------------------------------------------------- whole reports


def by_rank(place: Callable[[int], int]) -> Callable[[Run, Sample], str]:
    """Each of SHARED wrong on a number of samples that grows with a function of its printed place."""

    def reply(run: Run, sample: Sample) -> str:
        wrong = 3 + 5 * place(SHARED[run.method]) if run.method in SHARED else 0
        return "none" if int(sample.id[-5:]) < wrong else sample.answers[0]

    return reply


def tables(folder: Path, place: Callable[[int], int], methods: int = 5, model: str = "llava") -> list[Table]:
    chosen = list(SHARED)[:methods]
    fill(folder, [model], chosen, keeps=[0.111], tasks=["synth-ocr", "synth-choice"], n=40, reply=by_rank(place))
    return build_tables(folder)


def test_tasks_that_no_printed_table_asks_do_not_count(tmp_path: Path) -> None:
    (alone,) = tables(tmp_path / "alone", lambda k: k)
    asked = ["synth-ocr", "synth-choice", "synth-ground"]
    missed = lambda run, sample: "none" if run.task == "synth-ground" else by_rank(lambda k: k)(run, sample)  # noqa: E731
    fill(tmp_path / "more", ["llava"], list(SHARED)[:5], keeps=[0.111], tasks=asked, n=40, reply=missed)
    (more,) = build_tables(tmp_path / "more")
    assert more.tasks == ("synth-ocr", "synth-choice", "synth-ground")
    assert lines(agreements(more)) == lines(agreements(alone))
    assert "over synth-ocr, synth-choice:" in " ".join(sentences(more, agreements(more)))
    assert "over synth" not in " ".join(sentences(alone, agreements(alone)))


@pytest.mark.parametrize(("sign", "place"), [(1.0, lambda k: k), (-1.0, lambda k: 4 - k)])
def test_the_printed_order_and_its_reverse(sign: float, place: Callable[[int], int], tmp_path: Path) -> None:
    (table,) = tables(tmp_path, place)
    found = {(one.scope, one.paper and one.paper.source): one for one in agreements(table)}
    assert set(found) == {(scope, "HiPrune") for scope in (MEAN, ASKED, BEFORE)}, "AutoPrune shares two methods"
    one = found[MEAN, "HiPrune"]
    # HiPrune and VisionZip differ by 0.04 points in print, HiRED and TRIM by 0.3: still an order.
    expected = spearman(
        np.array([-sign * SHARED[pair.printed.ours[0]] for pair in one.pairs]),
        np.array([pair.printed.value for pair in one.pairs]),
    )
    assert one.correlation.value == pytest.approx(float(expected)) and sign * one.correlation.value >= 0.9
    assert one.correlation.low <= one.correlation.value <= one.correlation.high
    gaps = [abs((pair.row.rel_mean or 0) - pair.printed.value) for pair in one.pairs]
    assert one.difference.value == pytest.approx(np.mean(gaps)) and one.difference.low < one.difference.high
    assert len(one.methods) == 5 and list(one.by_share) == [pytest.approx(64 / 576)]


@pytest.mark.slow
def test_the_report_has_a_section_and_a_file_or_neither(tmp_path: Path) -> None:
    tables(tmp_path, lambda k: k)
    build(tmp_path)
    report = tmp_path / "report"
    assert 'id="m1-agreement"' in (report / "index.html").read_text()
    assert "### llava: agreement with published tables" in (report / "summary.md").read_text()
    assert (report / "agreement.csv").read_text().count("HiPrune,2") == 3 * 5
    fill(tmp_path, ["llava"], ["hiprune", "trim"], keeps=[0.111], tasks=["synth-ocr"], n=4)
    build(tmp_path)
    assert "agreement" not in (report / "index.html").read_text()
    assert not (report / "agreement.csv").exists()


@pytest.mark.parametrize("other", [{"methods": 3}, {"model": "some/other-model"}])
def test_too_few_methods_and_other_models_say_nothing(other: dict[str, object], tmp_path: Path) -> None:
    (table,) = tables(tmp_path, lambda k: k, **other)  # type: ignore[arg-type]
    assert agreements(table) == [] and sentences(table, []) == []
    assert "agreement" not in markdown([table], {table.model: []})


def test_lines_say_how_many_methods_at_which_budget(tmp_path: Path) -> None:
    (table,) = tables(tmp_path, lambda k: k)
    line = lines(agreements(table))[0]
    assert line[:3] == ["HiPrune, table 2", MEAN, "5"] and line[4].startswith("11.1 %: +") and line[4].endswith("(5)")
    said = " ".join(sentences(table, agreements(table)))
    assert said.startswith("This model met missing tokens in training")
    assert PREPARED not in sentences(replace(table, model="llava-hf/llava-1.5-7b-hf"), agreements(table))
    assert "Not compared with HiPrune, table 2, at equal means: " in said and "FastV (fastv@2 or" in said


# ---------------------------------------------------------------- equal means


def eight_layers(folder: Path, methods: list[str]) -> Table:
    """Rows as of a model with eight layers; `vtw` shows the image to seven of them."""
    fill(folder, ["llava"], methods, keeps=[0.333, 0.111], tasks=["synth-ocr"], n=4)
    (table,) = build_tables(folder)
    seen = {"fastv@2": lambda kept: (2 * 196 + 6 * kept) / 8, "vtw": lambda _: 7 * 196 / 8}
    rows = (replace(one, tokens_entering=seen.get(one.method, float)(one.tokens_kept)) for one in table.rows)
    return replace(table, rows=tuple(rows))


def test_a_method_inside_the_model_stands_in_the_column_of_its_mean(tmp_path: Path) -> None:
    table = eight_layers(tmp_path, ["random", "fastv@2", "vtw"])
    found = equal_means(table)
    assert found is not None and [level.title for level in found.levels] == ["33.3 %", "11.1 %"]
    assert [(name, [one and one.keep for one in of]) for name, of in found.lines] == [
        ("vanilla", [1.0, 1.0]),
        ("random", [0.333, 0.111]),
        ("fastv@2", [0.111, None]),
    ]
    assert found.missing == (
        "No run near a mean of 11.1 %: fastv@2 (33.4 to 49.9 %).",
        "No run near a mean of 33.3 % or 11.1 %: vtw (87.5 %).",
    )
    text = markdown([table])
    assert text.index("mean 33.3 %: abs_mean") < text.index("| 33.3 %: abs_mean") and found.missing[0] in text


def test_the_page_offers_both_and_shows_equal_means_first(tmp_path: Path) -> None:
    table = eight_layers(tmp_path, ["random", "fastv@2"])
    page = render(tmp_path, [(table, [])], styles(lines_of([table])), {"llava": []})
    assert page.index('data-part="m1-glance-1"') < page.index('data-part="m1-glance-2"')
    assert re.search(r'data-show="m1-glance-1" aria-pressed="true">equal mean', page)
    assert re.search(r'data-show="m1-axis-1" aria-pressed="true">visual tokens entering', page)
    shown = page[page.index('data-part="m1-glance-1"') : page.index('data-part="m1-glance-2"')]
    assert "<td>22.0</td><td>65.5</td>" in shown and "<td>65.0</td><td>97.8</td>" not in shown


def test_without_a_method_inside_the_model_means_are_the_budgets(tmp_path: Path) -> None:
    table = eight_layers(tmp_path, ["random", "divprune"])
    assert equal_means(table) is None and "mean 33.3 %" not in markdown([table])
    page = render(tmp_path, [(table, [])], styles(lines_of([table])), {"llava": []})
    assert "equal mean" not in page and 'data-show="m1-glance' not in page


# ---------------------------------------------------------------- figures beside the printed ones


def test_a_budget_of_another_count_is_not_the_printed_one() -> None:
    fact = next(f for f in published.facts() if f.printed.budget == "192 tokens" and f.method == "fastv@2")
    assert same_budget(fact, row("fastv@2", 0.375, 1 / 3))
    assert not same_budget(fact, replace(row("fastv@2", 1 / 3, 0.29), budget="mean"))
    plain = replace(row("divprune", 2 / 9, keep=2 / 9), budget="mean")
    assert not same_budget(fact, plain), "128 of 576 tokens are not 192"
