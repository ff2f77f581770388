"""From finished runs to tables: the figures that the console, the report and the plots show.

Every figure is computed from records. A ratio or a difference is always to the vanilla run of the same setting; there
is no way to give a baseline by hand.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

import numpy as np

from vlmprune.bench.flops import Flops, run_flops
from vlmprune.bench.marks import runnable
from vlmprune.bench.problems import problem_notes
from vlmprune.bench.stats import Estimate, difference, estimate
from vlmprune.bench.store import Record, Result, load_records, load_results
from vlmprune.bench.verdicts import judges_of
from vlmprune.core.budget import Keep
from vlmprune.core.shape import Shape
from vlmprune.scoring.metrics import METRICS, accuracy_by_category, unparsed_share

# Points. Closer to chance than this, the unpruned model cannot do a task, so that pruning cannot hurt it.
NEAR_CHANCE = 10.0
TOO_GOOD = 105.0  # percent of vanilla, above which the tables say so
NOT_MEASURED = "not measured"
VAGUE = 2.0  # percent of replies without an answer, above which the tables say so


@dataclass(frozen=True)
class Cell:
    """One run on one task; percent where nothing else is said.

    Attributes:
        value: the primary metric with its 95 % interval.
        ratio: 100 * value / vanilla's value, or None without a vanilla run.
        diff: value minus vanilla's on the same samples, in points, with its interval; None for vanilla itself.
        n: questions.
        units: what was drawn independently (pairs count once).
        unparsed: share of replies without an answer of the asked kind.
        details: further metrics of the task (POPE's precision, recall and yes-ratio; MME's acc and acc+).
        categories: plain accuracy of each question type.
        result: the run.
    """

    value: Estimate
    ratio: float | None
    diff: Estimate | None
    n: int
    units: int
    unparsed: float
    details: dict[str, float]
    categories: dict[str, float]
    result: Result

    @property
    def unmeasured(self) -> bool:
        """Whether replies wait for a judge."""
        return any(math.isnan(value) for value in self.categories.values())

    @property
    def too_good(self) -> bool:
        """Whether something other than pruning must have been measured."""
        return self.ratio is not None and self.ratio > TOO_GOOD

    @property
    def vague(self) -> bool:
        """Whether enough replies lack an answer for the tables to say so."""
        return self.unparsed > VAGUE


@dataclass(frozen=True)
class Row:
    """A method at a budget, over all tasks of a table.

    Attributes:
        method, keep, recipe: as in `store.Run`.
        cells: by task; a task that was not run is missing.
        tokens_before, tokens_kept, tokens_entering: visual tokens per sample, mean over all samples: of the full image,
            after the last cut, entering a decoder layer.
        flops: mean per sample up to the first new token, or None where the model's shape is not known.
        abs_mean: mean of the primary metrics over the table's averaged tasks; None unless all of them were run.
        rel_mean: mean over the same tasks of the ratios to vanilla; None in the same cases.
    """

    method: str
    keep: Keep | None
    recipe: str
    cells: dict[str, Cell]
    tokens_before: float
    tokens_kept: float
    tokens_entering: float
    flops: Flops | None
    abs_mean: float | None
    rel_mean: float | None

    @property
    def is_vanilla(self) -> bool:
        return next(iter(self.cells.values())).result.is_vanilla


@dataclass(frozen=True)
class Table:
    """One model.

    Attributes:
        tasks: in order.
        averaged: the tasks that the means are over.
        left_out: the others, with the reason in words.
        rows: vanilla first.
    """

    model: str
    tasks: tuple[str, ...]
    averaged: tuple[str, ...]
    left_out: dict[str, str]
    rows: tuple[Row, ...]
    dimensions: dict[str, str] = field(default_factory=dict)

    def texts(self) -> list[str]:
        """What the text-guided methods compared the images with, in sentences."""
        methods: dict[str, dict[str, None]] = {}
        for row in self.rows:
            for cell in row.cells.values():
                if cell.result.text is not None:
                    methods.setdefault(cell.result.text, {})[row.method] = None
        return [f"Image and question compared by {text}: {', '.join(names)}." for text, names in methods.items()]

    def files(self) -> list[str]:
        """Where the methods from files come from, in sentences without folders, which are the author's own."""
        results = [cell.result for row in self.rows for cell in row.cells.values()]
        named = {mark: file.rpartition("/")[2] for result in results for mark, file in result.files.items()}
        return [f"{mark} is {file}." for mark, file in named.items()]

    def judges(self) -> list[str]:
        """Who judged the replies of which tasks, in sentences."""
        judged: dict[str, dict[str, None]] = {}
        for row in self.rows:
            for task, cell in row.cells.items():
                for judge in () if cell.unmeasured else judges_of(cell.result.records_path):
                    judged.setdefault(judge, {})[task] = None
        return [f"Judged by {judge}: {', '.join(tasks)}." for judge, tasks in judged.items()]

    def notes(self) -> list[str]:
        """Sentences to print under the table."""
        results = [cell.result for row in self.rows for cell in row.cells.values()]
        said = [*self.texts(), *self.files(), *problem_notes(results), *self.judges()]
        if self.left_out:
            reasons = "; ".join(f"{task} ({why})" for task, why in self.left_out.items())
            said.append(f"Left out of the averages: {reasons}.")
        cells = [(cell, row.recipe, task) for row in self.rows for task, cell in row.cells.items()]
        many = [(cell.unparsed, recipe, task) for cell, recipe, task in cells if cell.vague]
        if many:
            share, recipe, task = max(many)
            said.append(
                f"In {len(many)} of {len(cells)} runs more than {VAGUE:g} % of the replies hold no answer of the asked "
                f"kind and count as wrong; the most in {recipe} on {task} ({share:.0f} %)."
            )
        better = [
            f"{row.recipe} on {task} ({cell.ratio:.0f} %)"
            for task in self.averaged
            for row in self.rows
            if (cell := row.cells.get(task)) and cell.too_good
        ]
        if better:
            said.append(f"More than {TOO_GOOD:g} % of the unpruned value, so look twice: {', '.join(better)}.")
        return said


def build_tables(folder: str | Path) -> list[Table]:
    """The tables of a result folder, one per model (see `store.load_results` for what is in them)."""
    return tables_of(load_results(folder))


def tables_of(results: Iterable[Result]) -> list[Table]:
    """Tables from results in table order."""
    by_model: dict[str, list[Result]] = {}
    for result in results:
        by_model.setdefault(result.model, []).append(result)
    return [_table(model, of_model) for model, of_model in by_model.items()]


def _table(model: str, results: Sequence[Result]) -> Table:
    records = {result.key: load_records(result) for result in results}
    out = {
        (result.task, r.id) for result in results for r in records[result.key] if r.problem
    }  # in none, if not in all
    for result in results:
        records[result.key] = [r for r in records[result.key] if (result.task, r.id) not in out]
    vanilla = {result.task: result for result in results if result.is_vanilla}
    tasks = tuple(dict.fromkeys(result.task for result in results))
    cells: dict[tuple[str, str | None], dict[str, Cell]] = {}
    for result in results:
        base = vanilla.get(result.task)
        cell = _cell(result, records[result.key], base, records[base.key] if base else [])
        cells.setdefault((result.recipe, result.positions), {})[result.task] = cell
    left_out = {task: why for task in tasks if (why := _why_left_out(task, vanilla, cells)) is not None}
    averaged = tuple(task for task in tasks if task not in left_out)
    rows = tuple(_row(of_row, records, averaged) for of_row in cells.values())
    return Table(model, tasks, averaged, left_out, rows, {result.task: result.dimension for result in results})


def _cell(result: Result, records: list[Record], base: Result | None, base_records: list[Record]) -> Cell:
    metric = METRICS[result.metric]
    counts = metric.counts(records)
    ratio, diff = None, None
    if base is not None:
        reference = metric.counts(base_records)
        whole = float(metric.value(reference.sum(0)))
        ratio = 100.0 * float(metric.value(counts.sum(0))) / whole if whole > 0 else None
        diff = None if result.is_vanilla else difference(metric, counts, reference)
    return Cell(
        value=estimate(metric, counts),
        ratio=ratio,
        diff=diff,
        n=len(records),
        units=len(counts),
        unparsed=unparsed_share(records),
        details=metric.details(counts.sum(0)),
        categories=accuracy_by_category(records),
        result=result,
    )


def _why_left_out(
    task: str, vanilla: dict[str, Result], cells: dict[tuple[str, str | None], dict[str, Cell]]
) -> str | None:
    if task not in vanilla:
        return "the unpruned model has not been run"
    base = vanilla[task]
    if any(of_row[task].unmeasured for of_row in cells.values() if task in of_row):
        return "not measured: its replies need a judge"
    value, chance = cells[(base.recipe, base.positions)][task].value.value, base.chance
    if math.isnan(value):  # F1 of questions whose right answer is never yes
        return f"{base.metric} has no value on these questions"
    if value - chance < NEAR_CHANCE:
        return f"unpruned {value:.1f}, chance {chance:.1f}"
    return None


def _row(cells: dict[str, Cell], records: dict[str, list[Record]], averaged: Sequence[str]) -> Row:
    first = next(iter(cells.values())).result
    samples = [record for cell in cells.values() for record in records[cell.result.key]]
    complete = bool(averaged) and all(task in cells for task in averaged)
    ratios = [cells[task].ratio for task in averaged if task in cells]
    known = [ratio for ratio in ratios if ratio is not None]
    return Row(
        method=first.method if first.positions is None else f"{first.method}, {first.positions} positions",
        keep=first.keep,
        recipe=first.recipe,
        cells=cells,
        tokens_before=fmean(record.visual_before for record in samples),
        tokens_kept=fmean(record.visual_kept for record in samples),
        tokens_entering=fmean(record.visual_entering for record in samples),
        flops=_flops(first, samples),
        abs_mean=float(np.mean([cells[task].value.value for task in averaged])) if complete else None,
        rel_mean=float(np.mean(known)) if complete and len(known) == len(averaged) else None,
    )


def _flops(result: Result, samples: Sequence[Record]) -> Flops | None:
    """Operations a sample; None where nothing is known of the model, or the file of a method has gone or changed."""
    text = runnable(result.recipe, result.code, result.files)
    return run_flops(Shape(**result.shape), text, samples) if result.shape and text is not None else None
