"""What `vlmprune bench` is asked for, and the rows of its tables.

`random` and `downsample` are always in the comparison, and a method that fuses attention is there without its fusion
too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

import vlmprune
from vlmprune.assets import embedded_names
from vlmprune.bench.load import find_model
from vlmprune.bench.marks import marked, recorded
from vlmprune.bench.protocols import Pixels, get_protocol
from vlmprune.bench.store import VANILLA
from vlmprune.core.budget import OWN, ByFrame, Keep, Keeps, check_keep, check_kind
from vlmprune.core.errors import Option, UserError
from vlmprune.core.files import IN_FILE
from vlmprune.core.method import POSITIONS, PixelMethod
from vlmprune.core.recipe import Recipe, format_method, lacks_budget, recipe
from vlmprune.core.roles import Fusing, merges_inside
from vlmprune.tasks import default_tasks, get_task
from vlmprune.tasks.task import Task

ALL = "all"
METHODS = ("random", "random@2", "downsample", "divprune", "hiprune", "visionzip", "fastv", "dart")
BASELINES = ("random", "downsample")
KEEPS: tuple[Keep, ...] = (0.333, 0.222, 0.111)
LIMIT = 64  # questions per task in the default run, which has to take at most ten minutes on two cores
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
        budget: what these budgets count, one of `core.budget.BUDGETS`.
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
    budget: str = OWN
    tasks: tuple[str, ...] = field(default_factory=default_tasks)
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

    @property
    def leaves_out(self) -> bool:
        """Whether a recipe that a model refuses is noted, instead of an error: with several models, or all methods."""
        return len(self.models) > 1 or {*vlmprune.METHODS} <= {*self.methods}

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
        check_kind(self.budget)
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
            own = variants_of(text, self.keeps, self.budget)
            asked += [*own, *(plain for variant in own if (plain := variant.unfused) is not None)]
        named = {variant.method for variant in asked}
        others = [v for name in BASELINES if name not in named for v in variants_of(name, self.keeps, self.budget)]
        missing = [replace(variant, unasked=True) for variant in others]
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
        budget: what `keep` counts; a chain says it itself.
        unasked: whether it is a baseline that is there without having been asked for.
    """

    method: str
    keep: Keep | None
    text: str
    recipe: Recipe | None = field(default=None, compare=False)
    seed: int | None = None
    budget: str = OWN
    unasked: bool = field(default=False, compare=False)

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


def variants_of(text: str, keeps: Sequence[Keep], budget: str = OWN) -> list[Variant]:
    """A method at every budget, or a recipe that carries its own and says what that counts."""
    if lacks_budget(text):
        return [_variant(recipe(text, keep=keep, budget=budget)) for keep in keeps]
    return [_variant(recipe(text))]


def _variant(parsed: Recipe) -> Variant:
    keeps = [stage.keep for stage in parsed.stages if not isinstance(stage.keep, Keeps | ByFrame)]
    if len(keeps) < len(parsed.stages):
        raise UserError(
            f"{parsed} has a budget for each image or frame of one prompt: a benchmark gives all images the same."
        )
    text = recorded(parsed)
    if len(parsed.stages) > 1:
        return Variant(text, None, text, parsed)
    method = format_method(parsed.stages[0].method, name=marked)
    return Variant(method, keeps[0], text, parsed, budget=parsed.stages[0].budget)


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
