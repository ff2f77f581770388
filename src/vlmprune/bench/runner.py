"""Runs models x methods x budgets x tasks, and keeps every reply as it comes.

Vanilla goes through the same loop, batches and decoding as the methods. In these accuracy runs the vision tower runs
once per batch and is shared by all methods and budgets (`bench.timing` shares nothing). The model is on the workers'
side (`bench.worker`), in this process or in others; here are the plan, the result folder and the progress.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmprune.bench.marks import code_of, files_of
from vlmprune.bench.plan import Plan, Variant
from vlmprune.bench.problems import check_some_asked
from vlmprune.bench.store import VANILLA, Run, Store
from vlmprune.bench.worker import Facts, OpenPool, Pool, Then, Unit, open_here
from vlmprune.core.budget import OWN
from vlmprune.tasks import get_task
from vlmprune.tasks.task import Task


@dataclass(frozen=True)
class Progress:
    """Where the runner is. A step is a batch of one variant; `done` counts finished steps of the whole plan."""

    model: str
    task: str
    variant: str
    done: int
    due: int
    task_done: int
    task_due: int


Tell = Callable[[Progress], None]


@dataclass(frozen=True)
class Job:
    """A run, and how many of its samples were there when it was taken up."""

    run: Run
    variant: Variant
    done: int


def run_bench(
    plan: Plan,
    out: str | Path,
    progress: Tell = lambda _: None,
    *,
    then: Then | None = None,
    force: bool = False,
    open_pool: OpenPool = open_here,
) -> list[Run]:
    """Compute what a plan asks for and the result folder does not have yet.

    Args:
        plan: what to run.
        out: the result folder. What it already holds is not computed again.
        progress: called before every step and at the end of each model.
        then: called once a model's runs are complete, where the model is loaded, with the result folder, the model and
            the plan's recipes. It may write to `bench.worker.BESIDE` in the folder.
        force: write into `out` although it holds files that vlmprune has not written.
        open_pool: opens the workers of a model; one in this process by default (`engines.cluster` has others).

    Returns:
        The runs of the plan.

    Raises:
        UserError: something in the plan does not exist or cannot run on a model.
    """
    plan.check()
    runs: list[Run] = []
    with Store(out, force=force) as store:
        for number, name in enumerate(plan.models):
            variants = plan.variants()
            with open_pool(plan, name, variants) as pool:
                bench = ModelBench(plan, variants, pool, store)
                bench.compute(number, progress)
                if then is not None:
                    pool.then(then, store.folder)
            runs += bench.runs
    return runs


class ModelBench:
    """The work on one model, but for the model: it asks the pool's workers for records, and stores them in order.

    Raises:
        UserError: a recipe cannot act on this model.
    """

    def __init__(self, plan: Plan, variants: list[Variant], pool: Pool, store: Store) -> None:
        self.plan, self.pool, self.store = plan, pool, store
        self.variants = [variant for variant in variants if variant.text not in pool.facts.left_out]
        self.tasks = [task for task in map(get_task, plan.tasks) if task.name not in pool.facts.left_out]
        self.jobs = {task.name: self._jobs(task, pool.facts) for task in self.tasks}

    @property
    def runs(self) -> list[Run]:
        return [job.run for jobs in self.jobs.values() for job in jobs]

    def _jobs(self, task: Task, facts: Facts) -> list[Job]:
        asked = facts.tasks[task.name]
        common: dict[str, Any] = {
            "model": facts.model,
            "weights": facts.weights,
            "dtype": facts.dtype,
            "attention": facts.attention,
            "task": task.name,
            "version": task.version,
            "samples": asked.digest,
            "n": len(asked.ids),
            "protocol": asked.protocol,
            "canvas": facts.canvas if task.endless else "",
            "generation": asked.generation,
            "pixels": asked.pixels,
            "batch_size": self.plan.batch_size,
            "versions": facts.versions,
        }
        jobs = []
        for variant in self.variants:
            positions = None if variant.text == VANILLA else self.plan.positions
            own: dict[str, Any] = {"code": code_of(variant.recipe)} if variant.recipe else {}
            own |= {"method": variant.method, "recipe": variant.text, "keep": variant.keep, "positions": positions}
            own |= {"seed": variant.seed, "budget": "" if variant.budget == OWN else variant.budget}
            run = Run(**own, **common)
            jobs.append(Job(run, variant, self.store.resume(run, asked.ids)))
        return jobs

    def _units(self, task: Task) -> Iterator[Unit]:
        """The batches of a task, those that every variant has already included."""
        for number, start in enumerate(range(0, len(self.pool.facts.tasks[task.name].ids), self.plan.batch_size)):
            due = (column for column, job in enumerate(self.jobs[task.name]) if job.done <= start)
            yield Unit(task.name, number, tuple(due))

    def compute(self, place: int, progress: Tell) -> None:
        """Run what is missing. `place` is the model's in the plan."""
        recipes = [variant.recipe for variant in self.variants if variant.recipe is not None]
        self.store.compare(self.runs, {mark: file for one in recipes for mark, file in files_of(one).items()})
        units = {task.name: list(self._units(task)) for task in self.tasks}
        steps = sum(map(len, units.values())) * len(self.variants)
        before, due = place * steps, len(self.plan.models) * steps
        answers = self.pool.run(unit for of_task in units.values() for unit in of_task if unit.variants)
        for task in self.tasks:
            jobs, task_due = self.jobs[task.name], len(units[task.name]) * len(self.variants)
            for unit in units[task.name]:
                replies = next(answers) if unit.variants else iter(())
                for column, job in enumerate(jobs):
                    done = unit.number * len(jobs) + column
                    where = self.plan.models[place], task.name, job.variant.text
                    progress(Progress(*where, before + done, due, done, task_due))
                    if column in unit.variants:
                        self.store.append(job.run, next(replies))
            self._finish(task)
            before += task_due
        progress(Progress(self.plan.models[place], "", "", before, due, 0, 0))

    def _finish(self, task: Task) -> None:
        facts = self.pool.facts
        about = {"dimension": task.dimension, "metric": task.metric.name, "chance": task.chance}
        check_some_asked(self.store.folder, self.jobs[task.name][0].run)
        for job in self.jobs[task.name]:
            text = facts.texts[job.variant.text]
            self.store.finish(job.run, text=text, **about, shape=facts.shape, made=facts.made, left_out=facts.left_out)
