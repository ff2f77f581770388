"""Measures the speed of methods side by side, in turns: first all variants once, then all again, and so on.

A machine that slows down then slows all of them, and a ratio of two variants is taken within a turn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

import vlmprune
from vlmprune.bench.energy import energy_counter
from vlmprune.bench.flops import Flops, sample_flops
from vlmprune.bench.load import library_versions, load_model, machine, usable_device
from vlmprune.bench.marks import code_of
from vlmprune.bench.passes import of_passes
from vlmprune.bench.plan import Variant
from vlmprune.bench.protocol import Asker, protocol_for
from vlmprune.bench.random_inputs import random_inputs, usual_visual
from vlmprune.bench.random_models import Architecture, random_model
from vlmprune.bench.shapes import shape_of
from vlmprune.bench.speed_plan import SpeedPlan
from vlmprune.bench.speed_store import Measured, Point, PointResult, load_point, save_point
from vlmprune.bench.store import VANILLA, Store
from vlmprune.bench.timing import generate, peak_bytes
from vlmprune.bench.turns import Counts
from vlmprune.core.errors import UserError
from vlmprune.tasks import generated_tasks
from vlmprune.tasks.canvas import canvas_for
from vlmprune.tasks.task import Place

_TASK = "synth-ocr"  # whose pictures and questions a loaded model is timed on


@dataclass(frozen=True)
class SpeedProgress:
    """Where a measurement is: the point, and turns done of those that are due (warm-up included)."""

    model: str
    visual: int
    batch: int
    turn: int
    due: int


def run_speed(
    plan: SpeedPlan,
    out: str | Path,
    progress: Callable[[SpeedProgress], None] = lambda _: None,
    *,
    preset: str | None = None,
    force: bool = False,
) -> list[PointResult]:
    """Measure what a plan asks for and the result folder does not have yet.

    Args:
        plan: what to measure.
        out: the result folder.
        progress: called before every turn.
        preset: whose table is repeated, noted in the results.
        force: write into `out` although it holds files that vlmprune has not written.

    Raises:
        UserError: something in the plan does not exist or cannot run, or memory runs out.
    """
    plan.check()
    results = []
    with Store(out, force=force) as store:
        for name in plan.names:
            subject = _subject(plan, name)
            for variant in plan.variants():  # what does not fit the model has to fail now, not in an hour
                if variant.recipe is not None:
                    vlmprune.prune(subject.model, variant.recipe, positions=plan.positions)
            for visual, batch in plan.sizes():
                bench = PointBench(plan, subject, visual, batch, store.folder, preset)
                results.append(bench.measure(progress))
    return results


@dataclass(frozen=True)
class Subject:
    """A model that is timed.

    Attributes:
        name, weights: as results say them.
        model: of transformers.
        inputs: makes its inputs of (visual tokens, batch).
        made: where and from which commit, found out once, before anybody changes the files.
    """

    name: str
    model: Any
    weights: str
    inputs: Callable[[int, int], dict[str, torch.Tensor]]
    made: Mapping[str, Any]


def _subject(plan: SpeedPlan, name: str) -> Subject:
    if plan.architecture is not None:
        device = usable_device(plan.device)
        model = random_model(Architecture.parse(plan.architecture), device, plan.dtype, plan.attention)

        def tensors(visual: int, batch: int) -> dict[str, torch.Tensor]:
            return random_inputs(model, visual or usual_visual(model), batch, plan.text)

        return Subject(name, model, "random", tensors, machine(model))
    loaded = load_model(name, plan.device)

    def scenes(_: int, batch: int) -> dict[str, torch.Tensor]:
        task, config = generated_tasks()[_TASK], loaded.model.config
        sample = next(iter(task.samples(Place(canvas_for(config)))))
        asker = Asker(protocol_for(loaded.processor), task, loaded.processor, config.model_type)
        inputs = asker.inputs([sample] * batch)
        return dict(inputs.to(loaded.model.device, loaded.model.dtype))

    return Subject(name, loaded.model, loaded.weights, scenes, machine(loaded.model))


@dataclass
class PointBench:
    """The work at one point."""

    plan: SpeedPlan
    subject: Subject
    visual: int
    batch: int
    folder: Path
    preset: str | None
    variants: list[Variant] = field(init=False)

    def __post_init__(self) -> None:
        self.variants = self.plan.variants()
        self.model = self.subject.model
        self.inputs = self.subject.inputs(self.visual, self.batch)
        self.joules = energy_counter(self.model.device)
        ids = self.inputs["input_ids"]
        self.visual = int((ids[0] == self.model.config.image_token_id).sum())
        self.text = int(self.inputs["attention_mask"][0].sum()) - self.visual

    @property
    def point(self) -> Point:
        recipes = [variant.recipe for variant in self.variants if variant.recipe is not None]
        return Point(
            model=self.subject.name,
            weights=self.subject.weights,
            dtype=str(self.model.dtype).removeprefix("torch."),
            attention=str(self.model.config._attn_implementation),
            device=str(self.subject.made["device"]),
            visual=self.visual,
            text=self.text,
            batch=self.batch,
            new_tokens=max(self.plan.new_tokens),
            seed=self.plan.seed,
            positions=self.plan.positions,
            recipes=tuple(variant.text for variant in self.variants),
            code={mark: digest for one in recipes for mark, digest in code_of(one).items()},
            versions=library_versions(),
            preset=self.preset,
        )

    def measure(self, progress: Callable[[SpeedProgress], None]) -> PointResult:
        """What is there already and the turns that are missing."""
        point, lengths = self.point, tuple(sorted(set(self.plan.new_tokens)))
        known = load_point(self.folder, point)
        made, variants = self.subject.made, {variant.text: Measured() for variant in self.variants}
        result = known or PointResult(point, made, lengths, variants)
        result.lengths = tuple(sorted({*result.lengths, *lengths}))
        missing = self.plan.repeats - result.turns
        if missing > 0:
            for turn in self._turns(progress, missing):
                self._turn(result, counts=turn >= self.plan.warmup)
        save_point(self.folder, result)
        return result

    def _turns(self, progress: Callable[[SpeedProgress], None], missing: int) -> Iterator[int]:
        due = self.plan.warmup + missing
        for turn in range(due):
            progress(SpeedProgress(self.subject.name, self.visual, self.batch, turn, due))
            yield turn

    def _turn(self, result: PointResult, counts: bool) -> None:
        """All variants once. They are kept together, so that an interruption leaves no half of a turn."""
        turns = {variant.text: self._one(variant, result.variants[variant.text]) for variant in self.variants}
        if counts:
            for text, turn in turns.items():
                result.variants[text].turns.append(turn)
            save_point(self.folder, result)

    def _one(self, variant: Variant, measured: Measured) -> Any:
        options: dict[str, Any] = {"joules": self.joules}
        if variant.recipe is not None:
            options |= {"positions": self.plan.positions, "seed": self.plan.seed}
        length = max(self.plan.new_tokens)
        try:
            if not measured.peak_bytes:
                run = partial(generate, self.model, self.inputs, variant.recipe, length, **options)
                measured.peak_bytes = peak_bytes(self.model.device, run)
            turn, measured.counts = generate(self.model, self.inputs, variant.recipe, length, **options)
        except torch.OutOfMemoryError:
            raise UserError(
                f"{variant.text} ran out of memory at {self.visual} visual tokens and batch {self.batch}: ask for "
                "less; the points that are finished are kept."
            ) from None
        measured.flops = self._flops(variant, measured.counts)
        return turn

    def _flops(self, variant: Variant, counts: Counts) -> Flops | None:
        """Of a sample; all samples of a batch are alike."""
        shape = shape_of(self.model.config)
        if shape is None:
            return None
        each = counts.passes[: len(counts.passes) // self.batch]
        encoded = of_passes(shape, each, counts.encoded)
        text = VANILLA if variant.recipe is None else str(variant.recipe)
        return sample_flops(shape, text, self.text, counts.encoded, counts.stages, encoded)
