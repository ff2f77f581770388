"""Runs models x methods x budgets x tasks, and keeps every reply as it comes.

Vanilla goes through the same loop, batches and decoding as the methods. `random` and `downsample` are always in the
comparison, and a method that fuses attention is there without its fusion too. In these accuracy runs the vision tower
runs once per batch and is shared by all methods and budgets (`bench.timing` shares nothing).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import vlmprune
from vlmprune.assets import embedded_names
from vlmprune.bench.batch import Batch
from vlmprune.bench.load import Loaded, find_model, library_versions, load_model, machine
from vlmprune.bench.marks import code_of, files_of, marked, recorded
from vlmprune.bench.problems import check_some_asked
from vlmprune.bench.protocol import Asker, protocol_for
from vlmprune.bench.protocols import Pixels, get_protocol
from vlmprune.bench.questions import Questions
from vlmprune.bench.shapes import shape_of
from vlmprune.bench.store import VANILLA, Run, Store
from vlmprune.core.budget import Keep, Keeps, check_keep
from vlmprune.core.errors import Option, UserError
from vlmprune.core.files import IN_FILE
from vlmprune.core.method import POSITIONS, PixelMethod
from vlmprune.core.recipe import Recipe, format_method, lacks_budget, recipe
from vlmprune.core.roles import Fusing, merges_inside
from vlmprune.tasks import generated_tasks, get_task
from vlmprune.tasks.canvas import canvas_for
from vlmprune.tasks.task import Place, Task

ALL = "all"
METHODS = ("random", "random@2", "downsample", "divprune", "hiprune", "visionzip", "fastv", "dart")
BASELINES = ("random", "downsample")
KEEPS: tuple[Keep, ...] = (0.333, 0.222, 0.111)
LIMIT = 192  # questions per task in the default run, which has to take at most ten minutes on two cores
FULL = 600
BATCH_SIZE = 32


@dataclass(frozen=True)
class Plan:
    """What to run.

    Attributes:
        models: embedded names, folders or hub ids.
        methods: names with options and layers ("fastv@2"), files ("scope.py:Scope"), or recipes that carry their own
            budgets.
        keeps: budgets of the methods that carry none.
        tasks: names, or files of questions.
        data: folder with local copies of data sets; None for the hub.
        protocol: whose words the questions are put in; None for the one that suits the tokenizer.
        protocols: of tasks that are asked in others' words.
        pixels: limits of a picture's size instead of the protocol's.
        max_new_tokens: length of a reply instead of the protocol's.
        limit: questions per task that can be asked; None for all, and for FULL of tasks without end.
        seeds: of the sessions of methods that draw, each of which runs once with every one. Others run once.
        batch_size: questions per batch.
        positions: position policy, None for each method's own.
        device: None for the GPU when there is one.
        text_tower: the CLIP model (folder or hub id) whose vision tower the models have, for methods that compare the
            image with the question; without it they read the language model's embeddings.
    """

    models: tuple[str, ...] = field(default_factory=embedded_names)
    methods: tuple[str, ...] = METHODS
    keeps: tuple[Keep, ...] = KEEPS
    tasks: tuple[str, ...] = field(default_factory=lambda: tuple(generated_tasks()))
    data: str | None = None
    protocol: str | None = None
    protocols: Mapping[str, str] = field(default_factory=dict)
    pixels: Pixels | None = None
    max_new_tokens: int | None = None
    limit: int | None = LIMIT
    seeds: tuple[int, ...] = (0,)
    batch_size: int = BATCH_SIZE
    positions: str | None = None
    device: str | None = None
    text_tower: str | None = None

    def check(self) -> None:
        """Raise UserError where something in it cannot be run, before anything is loaded."""
        named: dict[str, str] = {}
        for text in self.tasks:
            name = get_task(text).name
            if named.setdefault(name, text) != text:
                raise UserError(
                    f"{named[name]!r} and {text!r} are both called {name!r}: rename one, or run them apart."
                )
        for keep in self.keeps:
            check_keep(keep)
        counts = {"limit": self.limit, "batch size": self.batch_size, "length of a reply": self.max_new_tokens}
        for what, number in counts.items():
            if number is not None and number < 1:
                raise UserError(f"The {what} must be at least 1, not {number}.")
        if self.positions is not None and self.positions not in POSITIONS:
            choice = f" is not a policy: choose {' or '.join(POSITIONS)}."
            raise UserError(Option("positions", self.positions), choice)
        if not self.seeds or min(self.seeds) < 0:
            raise UserError(Option("seeds"), " needs whole numbers from 0.")
        for protocol in (self.protocol, *self.protocols.values()):
            if protocol is not None:
                get_protocol(protocol)
        self.variants()
        for model in self.models:
            find_model(model)

    def limit_of(self, task: Task) -> int | None:
        """How many questions of a task are asked at most."""
        return FULL if self.limit is None and task.endless else self.limit

    def variants(self) -> list[Variant]:
        """Vanilla, then the methods at every budget, the baselines first unless they have been given a place.

        A method that draws is there once for each seed.
        """
        asked = []
        for text in self.methods:
            own = variants_of(text, self.keeps)
            asked += [*own, *(plain for variant in own if (plain := variant.unfused) is not None)]
        named = {variant.method for variant in asked}
        missing = [v for name in BASELINES if name not in named for v in variants_of(name, self.keeps)]
        every = dict.fromkeys([Variant(VANILLA, 1.0, VANILLA), *missing, *asked])
        return [one for variant in every for one in variant.seeded(self.seeds)]


@dataclass(frozen=True)
class Variant:
    """A row of the tables: a method at a budget, or vanilla.

    Attributes:
        method: without the budget, in its standard spelling ("fastv@2"); a chain as a whole.
        keep: the budget; None for a chain, which carries several.
        text: the recipe as results name it (`bench.marks`), or "vanilla".
        recipe: with the code that a method's file holds now, whatever becomes of it while this runs.
        seed: of its session where a method draws, else None.
    """

    method: str
    keep: Keep | None
    text: str
    recipe: Recipe | None = field(default=None, compare=False)
    seed: int | None = None

    def seeded(self, seeds: Sequence[int]) -> list[Variant]:
        """The same with each seed where a method draws, else itself."""
        stages = self.recipe.stages if self.recipe is not None else ()
        draws = any(stage.method.draws for stage in stages)
        return [replace(self, seed=seed) for seed in dict.fromkeys(seeds)] if draws else [self]

    @property
    def resizes(self) -> bool:
        """Whether it changes the image before the encoder."""
        return self.recipe is not None and any(isinstance(s.method, PixelMethod) for s in self.recipe.stages)

    @property
    def unfused(self) -> Variant | None:
        """The same without Prune-Aware Fusion, where there is any: the two rows side by side show what fusion does."""
        stages = self.recipe.stages if self.recipe is not None else ()
        plain = tuple(
            replace(one, method=one.method.unfused()) if isinstance(one.method, Fusing) else one for one in stages
        )
        return None if plain == stages else _variant(Recipe(plain))

    @property
    def encodes(self) -> bool:
        """Whether it cannot share the encoder's work with others."""
        return self.resizes or (self.recipe is not None and any(merges_inside(s.method) for s in self.recipe.stages))


def variants_of(text: str, keeps: Sequence[Keep]) -> list[Variant]:
    """A method at every budget, or a recipe that carries its own."""
    if lacks_budget(text):
        return [_variant(recipe(text, keep=keep)) for keep in keeps]
    return [_variant(recipe(text))]


def _variant(parsed: Recipe) -> Variant:
    keeps = [stage.keep for stage in parsed.stages if not isinstance(stage.keep, Keeps)]
    if len(keeps) < len(parsed.stages):
        raise UserError(f"{parsed} has a budget for each image of one prompt: a benchmark gives all images the same.")
    text = recorded(parsed)
    if len(parsed.stages) > 1:
        return Variant(text, None, text, parsed)
    return Variant(format_method(parsed.stages[0].method, name=marked), keeps[0], text, parsed)


def split_methods(text: str) -> tuple[str, ...]:
    """A comma-separated list of methods; commas in brackets and between layer numbers belong to a method.

    "all" stands for every method there is, third parties' included.

    Raises:
        UserError: it names none, or a file with a comma in its path.
    """
    parts = [part.strip(" ,") for part in re.split(rf",(?![^(]*\))(?=\s*(?:[A-Za-z_./~]|{IN_FILE.pattern}))", text)]
    for before, part in pairwise(parts):
        file = IN_FILE.match(part)
        path = f"{before},{file[0].partition(':')[0]}" if file else ""
        if path and Path(path).exists():
            raise UserError(f"A comma separates methods, and the path {path!r} has one: write it as %2C.")
    every = ("random", "random@2", *(name for name in vlmprune.METHODS if name != "random"))
    named = [name for part in parts if part for name in (every if part == ALL else (part,))]
    if not named:
        raise UserError(f"{text!r} names no method: write names separated by commas, or all.")
    return tuple(dict.fromkeys(named))


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


@dataclass
class Job:
    """A run, and how many of its samples are there."""

    run: Run
    variant: Variant
    done: int


def run_bench(
    plan: Plan,
    out: str | Path,
    progress: Callable[[Progress], None] = lambda _: None,
    *,
    then: Callable[[Loaded, list[Recipe]], object] = lambda *_: None,
    force: bool = False,
) -> list[Run]:
    """Compute what a plan asks for and the result folder does not have yet.

    Args:
        plan: what to run.
        out: the result folder. What it already holds is not computed again.
        progress: called before every step and at the end of each model.
        then: called once a model's runs are complete, with the model, still loaded, and the plan's recipes.
        force: write into `out` although it holds files that vlmprune has not written.

    Returns:
        The runs of the plan.

    Raises:
        UserError: something in the plan does not exist or cannot run on a model.
    """
    plan.check()
    runs: list[Run] = []
    with Store(out, force=force) as store:
        for number, name in enumerate(plan.models):
            loaded = load_model(name, plan.device, plan.text_tower)
            bench = ModelBench(plan, loaded, store)
            bench.compute(number, progress)
            then(loaded, bench.recipes)
            runs += bench.runs
    return runs


class ModelBench:
    """The work on one model.

    Raises:
        UserError: a recipe cannot act on this model.
    """

    def __init__(self, plan: Plan, loaded: Loaded, store: Store) -> None:
        self.plan, self.model, self.processor, self.store = plan, loaded.model, loaded.processor, store
        self.text_tower = loaded.text_tower
        self.variants = plan.variants()
        # a recipe or text tower that does not fit the model has to fail now, not in an hour
        sessions = {variant.text: self.session(variant) for variant in self.variants}
        self.texts = {text: None if session is None else session.text for text, session in sessions.items()}
        place = Place(canvas_for(loaded.model.config), None if plan.data is None else Path(plan.data).expanduser())
        self.tasks = [get_task(name) for name in plan.tasks]
        self.askers = {task.name: self._asker(task) for task in self.tasks}
        self.questions = {task.name: Questions(task, place, plan.limit_of(task)) for task in self.tasks}
        self.jobs = {task.name: self._jobs(task, loaded, str(place.canvas)) for task in self.tasks}

    @property
    def runs(self) -> list[Run]:
        return [job.run for jobs in self.jobs.values() for job in jobs]

    @property
    def recipes(self) -> list[Recipe]:
        found = {variant.text: variant.recipe for variant in self.variants if variant.recipe is not None}
        return list(found.values())

    def _asker(self, task: Task) -> Asker:
        name = self.plan.protocols.get(task.name, self.plan.protocol)
        protocol = protocol_for(self.processor) if name is None else get_protocol(name)
        model_type = self.model.config.model_type
        return Asker(protocol, task, self.processor, model_type, self.plan.pixels, self.plan.max_new_tokens)

    def _jobs(self, task: Task, loaded: Loaded, canvas: str) -> list[Job]:
        questions, asker = self.questions[task.name], self.askers[task.name]
        common: dict[str, Any] = {
            "model": loaded.name,
            "weights": loaded.weights,
            "dtype": loaded.dtype,
            "attention": loaded.attention,
            "task": task.name,
            "version": task.version,
            "samples": questions.digest,
            "n": len(questions),
            "protocol": str(asker.protocol),
            "canvas": canvas if task.endless else "",
            "generation": asker.generation(),
            "pixels": "" if asker.pixels is None else str(asker.pixels),
            "batch_size": self.plan.batch_size,
            "versions": library_versions(),
        }
        jobs = []
        for variant in self.variants:
            positions = None if variant.text == VANILLA else self.plan.positions
            own: dict[str, Any] = {"code": code_of(variant.recipe)} if variant.recipe else {}
            own |= {"method": variant.method, "recipe": variant.text, "keep": variant.keep, "positions": positions}
            own["seed"] = variant.seed
            run = Run(**own, **common)
            jobs.append(Job(run, variant, self.store.resume(run, questions.ids)))
        return jobs

    def compute(self, place: int, progress: Callable[[Progress], None]) -> None:
        """Run what is missing. `place` is the model's in the plan."""
        self.store.compare(self.runs, {k: v for r in self.recipes for k, v in files_of(r).items()})
        size = self.plan.batch_size
        batches = {name: -(-len(questions) // size) for name, questions in self.questions.items()}
        steps = sum(batches.values()) * len(self.variants)
        before, due = place * steps, len(self.plan.models) * steps

        def tell(task: str, variant: str, start: int, column: int) -> None:
            task_done = start // size * len(self.variants) + column
            task_due = batches[task] * len(self.variants)
            progress(Progress(self.plan.models[place], task, variant, before + task_done, due, task_done, task_due))

        for task in self.tasks:
            jobs = self.jobs[task.name]
            for number, samples in enumerate(self.questions[task.name].batches(size)):
                start = number * size
                due_jobs = [job for job in jobs if job.done <= start]
                batch = Batch(self, self.askers[task.name], samples, [job.variant for job in due_jobs])
                for column, job in enumerate(jobs):
                    tell(task.name, job.variant.text, start, column)
                    if job.done <= start:
                        self.store.append(job.run, batch.run(job.variant))
                        job.done = start + len(samples)
            self._finish(task)
            before += batches[task.name] * len(self.variants)
        progress(Progress(self.plan.models[place], "", "", before, due, 0, 0))

    @cached_property
    def about(self) -> dict[str, Any]:
        """What results say of the model and the machine; found out once, as it asks git."""
        shape = shape_of(self.model.config)
        return {"shape": None if shape is None else asdict(shape), "made": machine(self.model)}

    def _finish(self, task: Task) -> None:
        about = {"dimension": task.dimension, "metric": task.metric.name, "chance": task.chance, **self.about}
        check_some_asked(self.store.folder, self.jobs[task.name][0].run)
        for job in self.jobs[task.name]:
            self.store.finish(job.run, text=self.texts[job.variant.text], **about)

    def session(self, variant: Variant) -> Any:
        """An unopened session, or None for vanilla."""
        if variant.recipe is None:
            return None
        return vlmprune.prune(
            self.model,
            variant.recipe,
            positions=self.plan.positions,
            seed=variant.seed or 0,
            text_tower=self.text_tower,
        )
