"""The side of a run that has the model: a worker puts questions under variants, and answers with records.

A run's driver (`bench.runner`) has neither model nor data. It asks a pool of workers, of which `open_here` opens the
simplest: one worker in this process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from vlmprune.bench.batch import Batch
from vlmprune.bench.load import Loaded, library_versions, load_model, machine
from vlmprune.bench.marks import code_of
from vlmprune.bench.plan import Plan, Variant
from vlmprune.bench.protocol import Asker, protocol_for
from vlmprune.bench.protocols import get_protocol
from vlmprune.bench.questions import Questions
from vlmprune.bench.shapes import shape_of
from vlmprune.bench.store import VANILLA, Record
from vlmprune.core.aim import OutOfReach
from vlmprune.core.errors import UserError
from vlmprune.core.recipe import Recipe
from vlmprune.data.sample import Sample
from vlmprune.models import adapter_for
from vlmprune.tasks import get_task
from vlmprune.tasks.canvas import canvas_for
from vlmprune.tasks.task import Place, Task

CANNOT_RESIZE = "on this model, vlmprune cannot give pictures or videos fewer visual tokens by making them smaller"
BESIDE = "examples"  # the folder in a result folder that `Then` may write to

Then = Callable[[Path, Loaded, list[Recipe]], object]


@dataclass(frozen=True)
class Unit:
    """A piece of work: a batch of a task, under some variants.

    Attributes:
        task: its name.
        number: of the batch, from 0.
        variants: places in the plan's variants.
    """

    task: str
    number: int
    variants: tuple[int, ...]


@dataclass(frozen=True)
class Asked:
    """How a worker puts a task to its model.

    Attributes:
        ids, digest: of the questions (`bench.questions.Questions`).
        protocol: its name and version.
        generation: arguments of `generate`.
        pixels: limits of a picture's size, "" where the processor has its own.
    """

    ids: tuple[str, ...]
    digest: str
    protocol: str
    generation: Mapping[str, Any]
    pixels: str


@dataclass(frozen=True)
class Facts:
    """What a worker says of its model and data. Workers of one pool have to say the same, but for `made`.

    Attributes:
        model, weights, dtype, attention: of the model, as `bench.store.Run` names them.
        canvas: how generated scenes are drawn for the model.
        shape: widths and depths of the model, or None.
        texts: what a text-guided method compares the image with, by recipe.
        left_out: what cannot be run on this model, with the reason: recipes (`Plan.leaves_out`, and baselines that
            nobody asked for), and tasks that show what it does not take, by name.
        code: SHA-256 of the files of methods, by mark.
        versions: of the libraries that compute, vlmprune included.
        tasks: by name.
        made: the machine.
    """

    model: str
    weights: str
    dtype: str
    attention: str
    canvas: str
    shape: Mapping[str, Any] | None
    texts: Mapping[str, str | None]
    left_out: Mapping[str, str]
    code: Mapping[str, str]
    versions: Mapping[str, str]
    tasks: Mapping[str, Asked]
    made: Mapping[str, Any]


class Worker:
    """A model, and how a plan's questions are put to it.

    Args:
        plan: what is run.
        loaded: the model.
        variants: the plan's.

    Raises:
        UserError: a recipe cannot act on this model, or data is missing.
    """

    def __init__(self, plan: Plan, loaded: Loaded, variants: Sequence[Variant]) -> None:
        self.plan, self.loaded = plan, loaded
        self.model, self.processor = loaded.model, loaded.processor
        spared = [one for one in variants if one.unasked or plan.leaves_out]
        self.left_out = {one.text: CANNOT_RESIZE for one in spared if self._cannot(one)}
        self.variants = [variant for variant in variants if variant.text not in self.left_out]
        # a recipe or text tower that does not fit the model has to fail now, not in an hour
        self.texts: dict[str, str | None] = {}
        self.untouched: dict[str, int] = {}
        self._try_variants()
        self.place = Place(canvas_for(self.model.config), None if plan.data is None else Path(plan.data).expanduser())
        tasks = self._askable([get_task(name) for name in plan.tasks])
        self.askers = {task.name: self._asker(task) for task in tasks}
        self.questions = {task.name: Questions(task, self.place, plan.limit_of(task)) for task in tasks}
        self._reading: tuple[str, int, Iterator[list[Sample]]] = ("", 0, iter(()))

    def _cannot(self, variant: Variant) -> bool:
        return variant.resizes and not adapter_for(self.model).resizes

    def _try_variants(self) -> None:
        """Note what each recipe's methods compare the images with, and how many decoder layers it leaves alone.

        Raises:
            UserError: a recipe cannot act on this model, and the plan is not one that leaves it out. Budgets out of
                reach are all named at once.
        """
        refused: dict[str, OutOfReach] = {}
        for variant in self.variants:
            try:
                session = self.session(variant)
            except UserError as error:
                if self.plan.leaves_out:
                    self.left_out[variant.text] = str(error).rstrip(".")
                elif isinstance(error, OutOfReach):
                    refused[variant.text] = error
                else:
                    raise
                continue
            self.texts[variant.text] = None if session is None else session.text
            self.untouched[variant.text] = 0 if session is None or variant.encodes else session.untouched
        if refused:
            first, *others = refused
            more = f" The same holds for {', '.join(others)}." if others else ""
            raise UserError(f"{refused[first]}{more}")
        self.variants = [variant for variant in self.variants if variant.text not in self.left_out]
        if self.left_out and all(one.unasked or one.text == VANILLA for one in self.variants):
            text, why = next(iter(self.left_out.items()))
            raise UserError(f"Nothing of what was asked can run on {self.loaded.name}. {text}: {why}.")

    def _askable(self, tasks: Sequence[Task]) -> list[Task]:
        """The tasks without those that show what the model does not take, which are noted.

        Raises:
            UserError: none is left.
        """
        refused = {task.name: why for task in tasks if task.has_videos and (why := self._asker(task).refuses_videos)}
        if refused and len(refused) == len(tasks):
            why = next(iter(refused.values()))
            raise UserError(f"No question of {' or '.join(refused)} can be asked of {self.loaded.name}: {why}.")
        self.left_out |= refused
        return [task for task in tasks if task.name not in refused]

    def _asker(self, task: Task) -> Asker:
        name = self.plan.protocols.get(task.name, self.plan.protocol)
        protocol = protocol_for(self.processor) if name is None else get_protocol(name)
        model_type = self.model.config.model_type
        return Asker(protocol, task, self.processor, model_type, self.plan.pixels, self.plan.max_new_tokens)

    @cached_property
    def facts(self) -> Facts:
        """Found out once, as it asks git."""
        shape = shape_of(self.model.config)
        return Facts(
            model=self.loaded.name,
            weights=self.loaded.weights,
            dtype=self.loaded.dtype,
            attention=self.loaded.attention,
            canvas=str(self.place.canvas),
            shape=None if shape is None else asdict(shape),
            texts=self.texts,
            left_out=self.left_out,
            code={mark: digest for recipe in self.recipes for mark, digest in code_of(recipe).items()},
            versions=library_versions(),
            tasks={name: self._asked(name) for name in self.questions},
            made=machine(self.model),
        )

    def _asked(self, name: str) -> Asked:
        questions, asker = self.questions[name], self.askers[name]
        pixels = "" if asker.pixels is None else str(asker.pixels)
        return Asked(tuple(questions.ids), questions.digest, str(asker.protocol), asker.generation(), pixels)

    @property
    def recipes(self) -> list[Recipe]:
        """The plan's, each once."""
        found = {variant.text: variant.recipe for variant in self.variants if variant.recipe is not None}
        return list(found.values())

    def run(self, unit: Unit) -> Iterator[list[Record]]:
        """The records of each variant of a unit, computed as they are asked for."""
        variants = [self.variants[column] for column in unit.variants]
        batch = Batch(self, self.askers[unit.task], self._samples(unit), variants)
        for variant in variants:
            yield batch.run(variant)

    def _samples(self, unit: Unit) -> list[Sample]:
        """The samples of a unit. Data is read onwards, and from its beginning only for a batch that has gone by."""
        task, number, batches = self._reading
        if task != unit.task or number > unit.number:
            number, batches = 0, self.questions[unit.task].batches(self.plan.batch_size)
        for _ in range(number, unit.number):
            next(batches)
        samples = next(batches)
        self._reading = (unit.task, unit.number + 1, batches)
        return samples

    def session(self, variant: Variant) -> Any:
        """An unopened session, or None for vanilla."""
        if variant.recipe is None:
            return None
        return self.loaded.session(variant.recipe, self.plan.positions, variant.seed or 0)


class Pool(Protocol):
    """Workers that have one model."""

    @property
    def facts(self) -> Facts:
        """What all of them say."""
        ...

    def run(self, units: Iterable[Unit]) -> Iterator[Iterator[list[Record]]]:
        """The answers to units, in the order of the units: for each, the records of its variants."""
        ...

    def then(self, then: Then, folder: Path) -> None:
        """Call `then` where a model is; what it writes to `BESIDE` is in `folder` afterwards."""
        ...


OpenPool = Callable[[Plan, str, Sequence[Variant]], AbstractContextManager[Pool]]


class Here:
    """A pool of one worker in this process."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker

    @property
    def facts(self) -> Facts:
        return self.worker.facts

    def run(self, units: Iterable[Unit]) -> Iterator[Iterator[list[Record]]]:
        return map(self.worker.run, units)

    def then(self, then: Then, folder: Path) -> None:
        then(folder, self.worker.loaded, self.worker.recipes)


def open_here(plan: Plan, name: str, variants: Sequence[Variant]) -> AbstractContextManager[Pool]:
    """Load a model in this process."""
    return nullcontext(Here(Worker(plan, load_model(name, plan.device, plan.text_tower), variants)))
