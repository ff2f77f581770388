"""What tables show: the figures of the console, the report and the plots (`bench.compare` computes them)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import stdev

from vlmprune.bench.flops import Flops
from vlmprune.bench.more_frames import FramesRow
from vlmprune.bench.problems import problem_note
from vlmprune.bench.ranks import Standing
from vlmprune.bench.significance import LEVEL, Test
from vlmprune.bench.stats import Estimate
from vlmprune.bench.store import Result
from vlmprune.bench.units import Units
from vlmprune.bench.verdicts import judges_of
from vlmprune.core.budget import BUDGET_WORDS, Keep

TOO_GOOD = 105.0  # percent of vanilla, above which the tables say so
NOT_MEASURED = "not measured"
VAGUE = 2.0  # percent of replies without an answer, above which the tables say so
ROUNDING = 1e-3  # tokens, of a mean over layers in the records
ENOUGH_HARD = 10  # questions that downsampling gets wrong, below which nothing is said of them


Asked = tuple[Keep, str]  # a budget, and what it counts as `store.Run.budget` says it


@dataclass(frozen=True)
class Spread:
    """A figure over several seeds of a method that draws.

    Attributes:
        seeds: in order.
        values: of each seed.
    """

    seeds: tuple[int, ...]
    values: tuple[float, ...]

    @property
    def sd(self) -> float:
        """Standard deviation over the seeds (n - 1)."""
        return stdev(self.values)

    @property
    def low(self) -> float:
        return min(self.values)

    @property
    def high(self) -> float:
        return max(self.values)


@dataclass(frozen=True)
class Hard:
    """Accuracy, percent, on the `n` questions that `downsample` gets wrong at a budget; None where they are too few."""

    value: float | None
    n: int


@dataclass(frozen=True)
class Cell:
    """One method and budget on one task; percent where nothing else is said. Several seeds count by their mean.

    Attributes:
        value: the primary metric with its 95 % interval.
        spread: of the metric over the seeds, where there are several.
        ratio: 100 * value / vanilla's value, or None without a vanilla run.
        diff: value minus vanilla's on the same samples, in points, with its interval; None for vanilla itself.
        test: of the difference; None where there is none.
        p_holm: its p-value after Holm's correction over the methods of the same model, budget and task.
        n: questions.
        units: what was drawn independently (pairs count once).
        unparsed: share of replies without an answer of the asked kind.
        loyalty: share of replies with the same answer as vanilla's.
        accuracy: mean score of the questions, whatever the metric is.
        hard: accuracy on the questions that `downsample` gets wrong, by budget: all budgets for vanilla, else its own.
        details: further metrics of the task (POPE's precision, recall and yes-ratio; MME's acc and acc+).
        categories: plain accuracy of each question type.
        results: the runs, one a seed.
        counted: what the runs counted, for figures over several tasks.
    """

    value: Estimate
    spread: Spread | None
    ratio: float | None
    diff: Estimate | None
    test: Test | None
    p_holm: float | None
    n: int
    units: int
    unparsed: float
    loyalty: float | None
    accuracy: float
    hard: Mapping[Asked, Hard]
    details: dict[str, float]
    categories: dict[str, float]
    results: tuple[Result, ...]
    counted: Units = field(repr=False, compare=False)

    @property
    def result(self) -> Result:
        """The first run."""
        return self.results[0]

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

    @property
    def significant(self) -> bool:
        """Whether the difference to vanilla is significant at 5 % after Holm's correction."""
        return self.p_holm is not None and self.p_holm < LEVEL


@dataclass(frozen=True)
class Row:
    """A method at a budget, over all tasks of a table.

    Attributes:
        method, keep, budget, recipe: as in `store.Run`.
        cells: by task; a task that was not run is missing.
        tokens_before, tokens_kept, tokens_entering: visual tokens per sample, mean over all samples: of the full image,
            after the last cut, entering a decoder layer.
        flops: mean per sample up to the first new token, or None where the model's shape is not known.
        abs_mean: mean of the primary metrics over the table's averaged tasks; None unless all of them were run.
        rel_mean: mean over the same tasks of the ratios to vanilla; None in the same cases.
        abs_spread, rel_spread: of these over the seeds; None unless all these tasks were run with the same several.
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
    abs_spread: Spread | None = None
    rel_spread: Spread | None = None
    budget: str = ""

    @property
    def asked(self) -> Asked | None:
        """Its budget and what that counts; None for a recipe that carries several."""
        return None if self.keep is None else (self.keep, self.budget)

    @property
    def is_vanilla(self) -> bool:
        return next(iter(self.cells.values())).result.is_vanilla

    @property
    def mean_share(self) -> float:
        """Visual tokens that enter a layer, mean over the layers, as a share of the full image's."""
        return self.tokens_entering / self.tokens_before

    @property
    def inside(self) -> bool:
        """Whether some layers of the language model see more tokens than are left at the end."""
        return self.tokens_entering > self.tokens_kept + ROUNDING

    @property
    def seeds(self) -> tuple[int, ...]:
        """Those of a method that draws; several of them are one row."""
        runs = (result for cell in self.cells.values() for result in cell.results)
        return tuple(dict.fromkeys(result.seed for result in runs if result.seed is not None))


@dataclass(frozen=True)
class Ranking:
    """The methods of one budget, by how often each has the best mean (`bench.ranks`).

    Attributes:
        asked: the budget.
        measure: "rel_mean" or "abs_mean".
        places: rows with their standings, the best mean rank first.
    """

    asked: Asked
    measure: str
    places: tuple[tuple[Row, Standing], ...]


@dataclass(frozen=True)
class Table:
    """One model.

    Attributes:
        tasks: in order.
        averaged: the tasks that the means are over.
        left_out: the others, with the reason in words.
        rows: vanilla first.
        dimensions: the ability of each task.
        rankings: for each budget with at least two methods, by rel_mean and by abs_mean.
        not_asked: by task, the samples that no run counts because one of them could not ask them: by id the problem,
            "" for one that goes with its group.
        by_frames: rows for each number of frames, where tasks were run with several.
    """

    model: str
    tasks: tuple[str, ...]
    averaged: tuple[str, ...]
    left_out: dict[str, str]
    rows: tuple[Row, ...]
    dimensions: dict[str, str] = field(default_factory=dict)
    rankings: tuple[Ranking, ...] = ()
    not_asked: dict[str, dict[str, str]] = field(default_factory=dict)
    by_frames: tuple[FramesRow, ...] = ()

    @property
    def vanilla(self) -> Row | None:
        return next((row for row in self.rows if row.is_vanilla), None)

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
        results = [result for row in self.rows for cell in row.cells.values() for result in cell.results]
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

    def seeds(self) -> list[str]:
        """Which methods stand there by the mean of several seeds, in sentences."""
        methods: dict[tuple[int, ...], dict[str, None]] = {}
        for row in self.rows:
            if len(row.seeds) > 1:
                methods.setdefault(row.seeds, {})[row.method] = None
        return [
            f"Mean over the seeds {', '.join(map(str, seeds))}: {', '.join(names)}." for seeds, names in methods.items()
        ]

    def budgets(self) -> list[str]:
        """What the budgets count where it is not each method's own meaning, in sentences."""
        kinds = dict.fromkeys(row.budget for row in self.rows if row.budget)
        return [f"A budget {kind}= counts visual tokens, {BUDGET_WORDS[kind]}, for every method." for kind in kinds]

    def gaps(self) -> list[str]:
        """How many questions of each task could not be asked, and why, in sentences."""
        sizes = {task: cell.result.n for row in self.rows for task, cell in row.cells.items()}
        return [problem_note(task, sizes[task], out) for task, out in self.not_asked.items() if task in sizes]

    def absent(self) -> list[str]:
        """Which recipes and tasks could not be run on this model, in sentences."""
        reasons = {
            text: why for row in self.rows for cell in row.cells.values() for text, why in cell.result.left_out.items()
        }
        shown = {row.recipe for row in self.rows} | {*self.tasks}
        return [f"Without {text}: {why}." for text, why in reasons.items() if text not in shown]

    def notes(self) -> list[str]:
        """Sentences to print under the table."""
        said = [
            *self.budgets(),
            *self.texts(),
            *self.files(),
            *self.seeds(),
            *self.judges(),
            *self.gaps(),
            *self.absent(),
        ]
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
