"""A method on one tiny model: its run, and the images as it was shown them, recorded for the checks to show again."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from typing import Any

import torch
from torch import Tensor, nn

from vlmprune.core.errors import UserError
from vlmprune.core.method import Method
from vlmprune.core.plan import Plan
from vlmprune.core.recipe import Recipe, recipe
from vlmprune.core.report import RunReport
from vlmprune.core.roles import Fusing, Observes, OrdersParts, SelectsTogether, changes_encoding
from vlmprune.core.view import ImageView, Selection
from vlmprune.models import adapter_for
from vlmprune.runtime.expected import Unexpected
from vlmprune.runtime.session import prune
from vlmprune.testing.families import FAMILIES
from vlmprune.testing.family import Family, alone, image_numbers, prompt
from vlmprune.testing.images import ODD

KEEP = 0.3
STEPS = 3  # tokens generated
SAMPLES: list[list[int]] = [[0, 1], [2]]  # two images with text between beside one: padding, different counts


@dataclass(frozen=True)
class Ground:
    """A model and a padded batch for it.

    Attributes:
        name: of the family, as `FAMILIES` has it.
        model: in float32 on the CPU.
        inputs: what its processor would return for the batch.
        rows: each sample by itself, without padding.
        numbers: [B, S] number of the image in its sample that a column shows, -1 for text.
        slots: by sample, the slots of each of its images.
        option: by which `vlmprune check` takes it, "on" or "model"; "" where the command names it already.
        odd: the same model with a picture of odd shape alone, or with several such, one by one.
        family: what is declared of the tiny model; None for a user's model.
        unjudged: why logits of this model cannot be compared (half precision, flash attention), "" where they can.
    """

    name: str
    model: Any
    inputs: dict[str, Tensor]
    rows: list[dict[str, Tensor]]
    numbers: Tensor
    slots: list[list[int]]
    option: str = "on"
    odd: tuple[Ground, ...] = ()
    family: Family | None = None
    unjudged: str = ""


@cache
def ground(name: str) -> Ground:
    """The tiny model of a family; UserError where there is none of that name."""
    if name not in FAMILIES:
        raise UserError(f"There is no tiny model {name!r}: choose from {', '.join(FAMILIES)}.")
    return tiny_ground(name, FAMILIES[name])


def tiny_ground(name: str, family: Family) -> Ground:
    """A tiny model as a family declares it."""
    model = family.build("sdpa")
    odd = () if family.one_shape else (_asked(f"{name}, a picture of odd shape", family, model, [[ODD]]),)
    return replace(_asked(name, family, model, SAMPLES), odd=odd)


def _asked(name: str, family: Family, model: Any, seeds: list[list[int]]) -> Ground:
    samples: list[list[int | None]] = [[*row] for row in seeds]
    rows = [alone(family, samples, row) for row in range(len(samples))]
    numbers, slots = image_numbers(family, samples), [[family.slots(seed) for seed in row] for row in seeds]
    return Ground(name, model, prompt(family, samples), rows, numbers, slots, family=family)


def grounds(names: Sequence[str] | None = None) -> Iterator[Ground]:
    """The tiny models of these families, all without."""
    for name in FAMILIES if names is None else names:
        yield ground(name)


@dataclass
class Run:
    """A pruned generation, or one forward.

    Attributes:
        tokens: [B, T] new ones.
        logits: [B, T, V] from which they were chosen.
        report: of the session.
        positions: position ids of the prompt as `generate` counted them, [..., B, S]; None where the model counts.
    """

    tokens: Tensor
    logits: Tensor
    report: RunReport
    positions: Tensor | None = None


@dataclass
class Reading(Mapping[str, Any]):
    """Signals that note which of them were read."""

    signals: Mapping[str, Any]
    read: set[str] = field(default_factory=set)

    def __getitem__(self, name: str) -> Any:
        self.read.add(name)
        return self.signals[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.signals)

    def __len__(self) -> int:
        return len(self.signals)


class Subject:
    """A method on one model.

    Attributes:
        method: as given; a `layer` beyond a tiny decoder is its layer 2 here.
        seen: the images as `select` was shown them, in order, each as it was before the call.
        read: by the number of an act and the name of each need declared there, whether it was read.
        failure: what was raised while it ran, None where nothing was.
    """

    def __init__(self, method: Method, on: Ground) -> None:
        self.ground, self.adapter = on, adapter_for(on.model)
        layer = getattr(method, "layer", None)
        if isinstance(layer, int) and layer >= self.adapter.info.decoder_layers:
            shallow: Any = {"layer": 2}
            method = replace(method, **shallow)
        self.method = method
        self.seen: list[ImageView] = []
        self.read: dict[tuple[int, str], bool] = {}
        self.failure: Exception | None = None

    def recipe(self, keep: float | int = KEEP) -> Recipe:
        return recipe(self.method, keep if self.method.budgeted else None)

    def plan(self, keep: float | int = KEEP) -> Plan:
        """Its acts on this model; UserError where it cannot act here."""
        return self.recipe(keep).on(self.adapter.info)

    @property
    def selects(self) -> bool:
        """Whether `select` is called at all."""
        return not changes_encoding(self.method)

    @cached_property
    def refused(self) -> str | None:
        """Why this model cannot be pruned by it, None where it can."""
        _ = self.run
        known = isinstance(self.failure, UserError) and not isinstance(self.failure, Unexpected)
        return str(self.failure) if known and not self.seen else None

    @cached_property
    def run(self) -> Run | None:
        """A generation under it; None where something was raised (`failure`)."""
        try:
            with prune(self.ground.model, self._recorded()) as session:
                return self.generate(self.ground.inputs, session)
        except Exception as error:
            self.failure = error
            return None

    @torch.no_grad()
    def generate(self, inputs: Mapping[str, Tensor], session: Any = None) -> Run:
        """Greedy generation with a cache: of the pruned model within a `session`, else of the unpruned one."""
        positions: list[Tensor | None] = []

        def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            positions.append(kwargs.get("position_ids"))

        handle = self.ground.model.register_forward_pre_hook(note, with_kwargs=True)
        never = {*(self.ground.model.generation_config.suppress_tokens or ()), *self.adapter.placeholder_ids.values()}
        try:
            out = self.ground.model.generate(
                **inputs, max_new_tokens=STEPS, min_new_tokens=STEPS, do_sample=False, suppress_tokens=sorted(never),
                return_dict_in_generate=True, output_logits=True,
            )  # fmt: skip
        finally:
            handle.remove()
        report = RunReport() if session is None else session.last
        tokens = out.sequences[:, inputs["input_ids"].shape[1] :]
        return Run(tokens, torch.stack(out.logits, dim=1), report, positions[0])

    @torch.no_grad()
    def forward(self, inputs: Mapping[str, Tensor], keep: float | int = KEEP, model: Any = None) -> Run:
        """One forward of the prompt; its logits are of the last token, [B, 1, V]."""
        model = self.ground.model if model is None else model
        with prune(model, self.recipe(keep)) as session:
            logits = model(**inputs).logits[:, -1:]
            return Run(logits.argmax(-1), logits, session.last)

    def _recorded(self) -> Recipe:
        """The recipe with a copy of the method that notes what it is shown and what it reads."""
        spy, method = copy.copy(self.method), self.method

        def noting(function: Callable[..., Any], keeps_views: bool) -> Callable[..., Any]:
            def call(given: ImageView | Sequence[ImageView], *more: Any) -> Any:
                views = [given] if isinstance(given, ImageView) else given
                if keeps_views:
                    self.seen += [replace(cloned(view), act=replace(view.act, method=method)) for view in views]
                readings = [Reading(view.signals) for view in views]
                shown = [replace(view, signals=reading) for view, reading in zip(views, readings, strict=True)]
                try:
                    return function(shown[0] if isinstance(given, ImageView) else shown, *more)
                finally:
                    for view, reading in zip(views, readings, strict=True):
                        for name in view.act.needs:
                            key = view.act.number, name
                            self.read[key] = self.read.get(key, False) or name in reading.read

            return call

        # Attributes of the one object, since the runtime asks which bases its class has.
        spy.__dict__["select"] = noting(method.select, True)
        if isinstance(method, SelectsTogether):
            spy.__dict__["select_together"] = noting(method.select_together, True)
        for role, name in ((Observes, "observe"), (Fusing, "candidates_together"), (OrdersParts, "reading_order")):
            if isinstance(method, role):
                spy.__dict__[name] = noting(getattr(method, name), False)
        return recipe(spy, KEEP if method.budgeted else None)


def cloned(view: ImageView) -> ImageView:
    """The same image with tensors and memory of its own."""
    signals = {name: mapped(value, Tensor.clone) for name, value in view.signals.items()}
    slots, cells, memory = view.slots.clone(), view.cells.clone(), copy.deepcopy(view.memory)
    return replace(view, signals=signals, slots=slots, cells=cells, memory=memory)


def mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A signal with all tensors in it changed; whatever else it holds stays."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, tuple):
        parts = [mapped(part, change) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    return value


def tensors(value: Any) -> list[Tensor]:
    """All tensors in a signal."""
    if isinstance(value, Tensor):
        return [value]
    return [tensor for part in value for tensor in tensors(part)] if isinstance(value, tuple) else []


def same(a: Selection, b: Selection) -> bool:
    """Whether two selections are equal, whatever the order of indices."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return torch.equal(a.sort().values, b.sort().values)
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return False
    return torch.equal(a.anchors, b.anchors) and torch.equal(a.features.nan_to_num(), b.features.nan_to_num())
