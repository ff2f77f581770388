"""What `vlmprune bench --speed` is asked for, and presets that repeat the timing tables of papers."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

from vlmprune.assets import embedded_names
from vlmprune.bench.load import find_model
from vlmprune.bench.plan import METHODS, Variant, variants_of
from vlmprune.bench.random_inputs import TEXT_TOKENS
from vlmprune.bench.random_models import Architecture
from vlmprune.bench.store import VANILLA
from vlmprune.core.budget import Keep, check_keep
from vlmprune.core.errors import Option, UserError
from vlmprune.core.method import POSITIONS
from vlmprune.core.recipe import lacks_budget

FOLDER = Path(__file__).parent / "speed_presets"


@dataclass(frozen=True)
class SpeedPlan:
    """What to measure.

    Attributes:
        models: embedded names, folders or hub ids; not with an architecture.
        architecture: of random weights, as `Architecture.parse` reads it.
        methods, keeps: as of an accuracy run.
        visual: visual tokens a sample, for an architecture; the smallest picture of the embedded ones without it.
        batches: samples a batch.
        new_tokens: lengths of answers; the longest is generated, the shorter ones are read off it.
        text: tokens of the prompt's text, for an architecture.
        repeats, warmup: turns that count, and turns before them that do not.
        seed, positions: of the sessions.
        device, dtype, attention: None for the GPU when there is one, and for the model's own.
    """

    models: tuple[str, ...] = ()
    architecture: str | None = None
    methods: tuple[str, ...] = METHODS
    keeps: tuple[Keep, ...] = (0.222,)
    visual: tuple[int, ...] = ()
    batches: tuple[int, ...] = (1,)
    new_tokens: tuple[int, ...] = (16,)
    text: int = TEXT_TOKENS
    repeats: int = 10
    warmup: int = 2
    seed: int = 0
    positions: str | None = None
    device: str | None = None
    dtype: str | None = None
    attention: str | None = None

    def check(self) -> None:
        """Raise UserError where something in it cannot be measured, before anything is loaded."""
        for what in ("visual", "batches", "new_tokens"):
            if wrong := [number for number in getattr(self, what) if number < 1]:
                raise UserError(f"{_WORDS[what]} must be at least 1, not {wrong[0]}.")
        if self.repeats < 1:
            raise UserError(Option("repeats", self.repeats), " must be at least 1.")
        if self.positions is not None and self.positions not in POSITIONS:
            raise UserError(Option("positions", self.positions), f" is not a policy: choose {' or '.join(POSITIONS)}.")
        for keep in self.keeps:
            check_keep(keep)
        if (bare := [text for text in self.methods if lacks_budget(text)]) and not self.keeps:
            raise UserError(f"{bare[0]!r} has no budget: give it one as {bare[0]}:0.222, or ", Option("keep"), ".")
        self.variants()
        if self.architecture is not None:
            if self.models:
                raise UserError(Option("model"), " and ", Option("random"), " contradict each other: give one of them.")
            Architecture.parse(self.architecture)
            return
        for name in ("visual", "dtype"):
            if getattr(self, name):
                option = "visual_tokens" if name == "visual" else name
                raise UserError(Option(option), " is for random weights alone: give ", Option("random"), " with it.")
        for model in self.names:
            find_model(model)

    @property
    def names(self) -> tuple[str, ...]:
        """What is measured, as the tables call it."""
        if self.architecture is not None:
            return (str(Architecture.parse(self.architecture)),)
        return self.models or embedded_names()

    def variants(self) -> list[Variant]:
        """Vanilla, then the methods at every budget."""
        asked = [variant for text in self.methods for variant in variants_of(text, self.keeps)]
        return list(dict.fromkeys([Variant(VANILLA, 1.0, VANILLA), *asked]))

    def sizes(self) -> list[tuple[int, int]]:
        """(visual tokens, samples a batch) of each point, the small ones first; 0 tokens for a picture of the task."""
        return sorted(product(self.visual or (0,), self.batches), key=lambda size: (size[0] * size[1], size))


_WORDS = {"visual": "The number of visual tokens", "batches": "The batch size", "new_tokens": "The length of an answer"}


@dataclass(frozen=True)
class SpeedPreset:
    """A timing table of a paper, and the plan that repeats it.

    Attributes:
        source: paper, table and what is known of the conditions.
        note: what the paper leaves open, and what was assumed.
        printed: its figures: `recipe`, `visual`, and seconds or operations by the name of our column.
    """

    source: str
    note: str
    plan: SpeedPlan
    printed: Sequence[Mapping[str, Any]] = field(default_factory=list)


def presets() -> tuple[str, ...]:
    return tuple(sorted(path.stem for path in FOLDER.glob("*.toml")))


def speed_preset(name: str) -> SpeedPreset:
    """A preset by its name.

    Raises:
        UserError: there is no such preset.
    """
    if name not in presets():
        raise UserError(f"There is no preset of timings {name!r}: choose {', '.join(presets())}.")
    values = tomllib.loads((FOLDER / f"{name}.toml").read_text(encoding="utf-8"))
    source, note, printed = (values.pop(key) for key in ("source", "note", "printed"))
    given: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    return SpeedPreset(source, " ".join(note.split()), replace(SpeedPlan(keeps=()), **given), printed)


def planned(preset: str | None, given: Mapping[str, Any]) -> SpeedPlan:
    """The plan of a preset, or of none, with what the user gave in its place."""
    plan = SpeedPlan() if preset is None else speed_preset(preset).plan
    if preset is not None and given.get("models"):
        raise UserError(Option("preset", preset), " has an architecture of its own: leave out ", Option("model"), ".")
    return replace(plan, **{name: value for name, value in given.items() if value is not None})
