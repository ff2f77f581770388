"""What a prefill did, for the user."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vlmprune.core.report import RunReport
from vlmprune.core.spread import PromptColumns
from vlmprune.models.base import Adapter
from vlmprune.runtime.encoder_reading import layers_read
from vlmprune.runtime.flow import Prompt

if TYPE_CHECKING:
    from vlmprune.runtime.forward import Forward


def report_of(run: Forward, prompt: Prompt) -> RunReport:
    """The report of a forward of the text model with images; beams of a sample count once."""
    first_of = [row for row, sample in enumerate(prompt.samples) if row == 0 or sample != prompt.samples[row - 1]]
    depth = len(run.adapter.decoder_layers)
    ends = [segment.start for segment in run.segments[1:]] + [depth]
    visual = [(segment.layout.image >= 0).sum(1).tolist() for segment in run.segments]
    last = run.segments[-1].layout

    def of_row(row: int) -> list[Tensor]:
        images = range(len(prompt.rows[row]))
        return [kept_slots(last.slot[row][last.image[row] == image]) for image in images]

    prompt_columns = PromptColumns(
        length=run.length,
        bands=[
            (s.start, s.layout.source[first_of].cpu(), ((s.layout.image < 0) | (s.layout.slot >= 0))[first_of].cpu())
            for s in run.segments
        ],
        samples=prompt.samples,
        depth=depth,
        kinds={layer: run.adapter.layer_kind(layer) for layer in run.adapter.attention_layers},
        trimmed=run.trimmed,
        cached=run.past_places > 0,
    )
    return RunReport(
        kept=[of_row(row) for row in first_of],
        stages=[(layer, [kept[row] for row in first_of]) for layer, kept in run.stages],
        counts=[(layer, [counts[row] for row in first_of]) for layer, counts in run.counts],
        tokens=[(int((run.whole.image[row] >= 0).sum()), visual[-1][row]) for row in first_of],
        merged=[int(((last.image[row] >= 0) & (last.origin[row] < 0)).sum()) for row in first_of],
        entering=[
            sum(counts[row] * (end - s.start) for counts, end, s in zip(visual, ends, run.segments, strict=True))
            / depth
            for row in first_of
        ],
        columns=prompt_columns.of(-1),
        prompt=prompt_columns,
        grids=[[image.tokens.grid for image in prompt.rows[row]] for row in first_of],
        cells=[[image.tokens.places.cells.cpu() for image in prompt.rows[row]] for row in first_of],
        wholes=[[image.tokens.places.wholes or () for image in prompt.rows[row]] for row in first_of],
        trimmed=run.trimmed,
        layers=layers_read(_as_called(run, prompt), run.hooks.recipe),
        text=run.hooks.text_read,
        fused={layer.number: layer.raised for layer in run.fused},
        seconds=run.seconds + sum(layer.seconds for layer in run.fused) + prompt.seconds,
    )


def _as_called(run: Forward, prompt: Prompt) -> Adapter:
    """The adapter of the call that encoded the images: it may have asked for another layer than the config does."""
    return next((image.tokens.adapter for images in prompt.rows for image in images), run.adapter)


def kept_slots(slots: Tensor) -> Tensor:
    """Sorted distinct slots on the CPU, without the -1 of tokens that have none."""
    return torch.unique(slots[slots >= 0]).cpu()
