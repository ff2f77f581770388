"""Timings on disk: one JSON file for each point, which holds every turn of every variant that was measured there.

Variants are compared turn by turn, so what stands in one file was measured side by side. A file is written again after
each turn: an interrupted measurement keeps the turns that are complete, and the same command measures the rest.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from vlmprune.bench.flops import Flops
from vlmprune.bench.store import write_json
from vlmprune.bench.turns import Counts, Turn
from vlmprune.core.errors import UserError

SCHEMA = 1
FOLDER = "speed"


@dataclass(frozen=True)
class Point:
    """Where variants are measured side by side: all that decides what runs.

    Attributes:
        model: name of the model or architecture.
        weights: digest or revision, "random".
        dtype, attention, device: of the model.
        visual: visual tokens a sample.
        text: other tokens of the prompt a sample.
        batch: samples.
        new_tokens: generated.
        seed, positions: of the sessions.
        recipes: of the variants, in order; vanilla first.
        code: SHA-256 of the file of each method that comes from one.
        versions: of the libraries that compute.
        preset: whose table is repeated, or None.
    """

    model: str
    weights: str
    dtype: str
    attention: str
    device: str
    visual: int
    text: int
    batch: int
    new_tokens: int
    seed: int
    positions: str | None
    recipes: tuple[str, ...]
    code: Mapping[str, str]
    versions: Mapping[str, str]
    preset: str | None = None

    @property
    def key(self) -> str:
        return sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:12]


@dataclass
class Measured:
    """One variant at a point.

    Attributes:
        counts: token counts and bytes, None before the first turn.
        flops: operations of a sample up to its first new token, None for a model without a shape.
        peak_bytes: memory on top of the weights, at its highest.
        turns: all that count.
    """

    counts: Counts | None = None
    flops: Flops | None = None
    peak_bytes: int = 0
    turns: list[Turn] = field(default_factory=list)


@dataclass
class PointResult:
    """A point with its variants by recipe, the machine it was measured on, and the lengths of answers to show."""

    point: Point
    made: Mapping[str, Any]
    lengths: tuple[int, ...]
    variants: dict[str, Measured]

    @property
    def turns(self) -> int:
        """Complete turns."""
        return min(len(measured.turns) for measured in self.variants.values())


def path_of(folder: Path, point: Point) -> Path:
    name = re.sub(r"[^\w.@=+-]+", "_", point.model).strip("_.")[-80:]
    return folder / FOLDER / name / f"{point.visual}x{point.batch}-{point.key}.json"


def save_point(folder: Path, result: PointResult) -> None:
    """Write what is measured; a reader sees either this or what was there before."""
    write_json(path_of(folder, result.point), {"schema": SCHEMA, **asdict(result)})


def load_point(folder: Path, point: Point) -> PointResult | None:
    """What an earlier run has measured of a point, cut to turns that all variants have."""
    path = path_of(folder, point)
    return _read(path) if path.exists() else None


def load_points(folder: Path) -> list[PointResult]:
    """All points of a result folder that have a complete turn: by model, from few visual tokens to many."""
    found = [_read(path) for path in sorted((folder / FOLDER).glob("*/*.json"))]
    ready = [result for result in found if result.turns]
    return sorted(ready, key=lambda r: (r.point.model, r.point.visual, r.point.batch, r.point.key))


def _read(path: Path) -> PointResult:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["schema"] != SCHEMA:
            raise UserError(f"{str(path)!r} has schema {content['schema']}; this vlmprune reads schema {SCHEMA}.")
        point = Point(**{**content["point"], "recipes": tuple(content["point"]["recipes"])})
        variants = {recipe: _variant(values) for recipe, values in content["variants"].items()}
        result = PointResult(point, content["made"], tuple(content["lengths"]), variants)
        for measured in variants.values():
            del measured.turns[result.turns :]
        return result
    except UserError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{str(path)!r} is not a timing of vlmprune bench: delete it.") from None


def _variant(values: Mapping[str, Any]) -> Measured:
    counts, flops = values["counts"], values["flops"]
    if counts is not None:
        stages = tuple((layer, tokens) for layer, tokens in counts["stages"])
        counts = Counts(**{**counts, "stages": stages, "passes": tuple(counts["passes"])})
    turns = [Turn(**{**turn, "ticks": tuple(turn["ticks"])}) for turn in values["turns"]]
    return Measured(counts, None if flops is None else Flops(*flops), values["peak_bytes"], turns)
