"""What a prefill did, for the user."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from vlmprune.core.fates import Fate
from vlmprune.core.report import Kept, RunReport
from vlmprune.core.spread import PromptColumns
from vlmprune.runtime.flow import Prompt, Segment


@dataclass
class Acted:
    """What each act left, of every row of the batch.

    Attributes:
        stages: by the layer before which it took place, the slots of each image of each row (`RunReport.stages`).
        counts: likewise the visual tokens of each row (`RunReport.counts`).
    """

    stages: list[tuple[int, Kept]] = field(default_factory=list)
    counts: list[tuple[int, list[int]]] = field(default_factory=list)

    def note(self, layer: int, slots: Sequence[Sequence[Tensor]]) -> None:
        """The slots that the tokens of each image of each row stand at, -1 for one that has none."""
        self.stages.append((layer, [[_distinct(_here(image)) for image in row] for row in slots]))
        self.counts.append((layer, [sum(map(len, row)) for row in slots]))


@dataclass(frozen=True)
class Prefill:
    """A forward of the text model with images, once it is over.

    Attributes:
        prompt: what it was given.
        length: columns of the prompt; behind a cache, of its new part.
        before: visual tokens of each row before any act.
        segments: the tokens of each band of decoder layers.
        kinds: the kind of attention of each decoder layer that has some.
        depth: number of decoder layers.
        acted: what each act left.
        layers, text, trimmed, fused: see `RunReport`.
        scores: what computed attention statistics.
        gathered: by cut, for each image of each row the slots that fusion drew attention to before it.
        fates: of each image of each row; None for a further beam of a sample.
        cached: whether it went on behind a cache.
        seconds: time spent on all of it, the encoder's statistics included.
        slot_pixels: see `Adapter.slot_pixels`.
    """

    prompt: Prompt
    length: int
    before: list[int]
    segments: Sequence[Segment]
    kinds: Mapping[int, str]
    depth: int
    acted: Acted
    layers: dict[str, int]
    text: str | None
    trimmed: dict[int, int]
    fused: dict[int, float]
    gathered: Mapping[int, Kept]
    fates: list[list[Fate | None]]
    cached: bool
    scores: set[str]
    seconds: float
    slot_pixels: int | None


def report_of(done: Prefill) -> RunReport:
    """The report of a prefill; beams of a sample count once."""
    samples, images = done.prompt.samples, done.prompt.rows
    first_of = [row for row, sample in enumerate(samples) if row == 0 or sample != samples[row - 1]]
    ends = [segment.start for segment in done.segments[1:]] + [done.depth]
    # What is counted is fetched once, and counted here: a GPU would be waited for at each number.
    visual = [(_here(segment.layout.image) >= 0).sum(1).tolist() for segment in done.segments]
    last = done.segments[-1].layout
    image, slot, origin = (_here(values) for values in (last.image, last.slot, last.origin))
    columns = _columns(done, first_of)
    return RunReport(
        kept=[[_distinct(slot[row][image[row] == k]) for k in range(len(images[row]))] for row in first_of],
        stages=[(layer, [kept[row] for row in first_of]) for layer, kept in done.acted.stages],
        counts=[(layer, [counts[row] for row in first_of]) for layer, counts in done.acted.counts],
        tokens=[(done.before[row], visual[-1][row]) for row in first_of],
        merged=[int(((image[row] >= 0) & (origin[row] < 0)).sum()) for row in first_of],
        entering=[
            sum(counts[row] * (end - s.start) for counts, end, s in zip(visual, ends, done.segments, strict=True))
            / done.depth
            for row in first_of
        ],
        columns=columns.of(-1),
        prompt=columns,
        grids=[[image.tokens.grid for image in images[row]] for row in first_of],
        videos=[[image.tokens.video for image in images[row]] for row in first_of],
        cells=[[image.tokens.places.cells.cpu() for image in images[row]] for row in first_of],
        wholes=[[image.tokens.places.wholes or () for image in images[row]] for row in first_of],
        trimmed=done.trimmed,
        layers=done.layers,
        text=done.text,
        fused=done.fused,
        scores=", ".join(sorted(done.scores)) or None,
        gathered={
            cut: [[_distinct(_here(of)) for of in rows[row]] for row in first_of] for cut, rows in done.gathered.items()
        },
        fates=[[fate for fate in done.fates[row] if fate is not None] for row in first_of],
        resized=[[image.tokens.small for image in images[row]] for row in first_of],
        slot_pixels=done.slot_pixels,
        seconds=done.seconds,
    )


def _columns(done: Prefill, rows: list[int]) -> PromptColumns:
    """Where the tokens of each band of layers stand in the prompt, of these rows."""
    bands = []
    for segment in done.segments:
        layout = segment.layout
        own = (layout.image < 0) | (layout.slot >= 0)
        bands.append((segment.start, layout.source[rows].cpu(), own[rows].cpu()))
    return PromptColumns(done.length, bands, done.prompt.samples, done.depth, done.kinds, done.trimmed, done.cached)


def _here(values: Tensor) -> np.ndarray:
    return values.cpu().numpy()


def _distinct(slots: np.ndarray) -> Tensor:
    """Sorted distinct slots, without the -1 of tokens that have none."""
    return torch.from_numpy(np.unique(slots[slots >= 0]))
