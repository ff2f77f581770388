"""A sheet of one run: what every stage left of every image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image

from vlmprune.core.errors import UserError
from vlmprune.core.report import RunReport
from vlmprune.drawing.legend import legend
from vlmprune.drawing.patches import draw, tints_of
from vlmprune.drawing.sheet import Panel, fit, sheet
from vlmprune.drawing.shown import Shown, shown_of
from vlmprune.drawing.window import window_on

ACROSS = 3  # stages side by side; further ones go on in the next row
_ALONE, _AMONG = 896, 448  # pixels of the longer side of the only panel, and of one among others, at most


def draw_run(
    report: RunReport,
    images: Sequence[Image.Image],
    *,
    title: str = "",
    lines: Sequence[str] = (),
    processor: Any = None,
    sample: int = 0,
    first: Panel | None = None,
) -> Image.Image:
    """A sheet of what a run kept: a panel for each image, stage, and way in which the slots cover the image.

    Args:
        report: `session.last`.
        images: the pictures of the sample, in prompt order.
        title: the method and budget in words.
        lines: further lines; the token counts are added to them.
        processor: the model's processor, to map its centre crop back onto the picture.
        sample: which sample of the batch.
        first: a panel before the others, such as the picture with the unpruned answer.

    Raises:
        UserError: it is not known how the slots cover the picture, or the prompt had more or fewer images.
    """
    if len(images) != len(report.wholes[sample]):
        raise UserError(f"The prompt had {len(report.wholes[sample])} images, and {len(images)} are given to draw on.")
    panels, everything = [] if first is None else [first], list[Shown]()
    stages = report.stages or [(0, report.kept)]
    alone = first is None and len(stages) == 1 and [len(wholes) for wholes in report.wholes[sample]] == [1]
    for number, (image, wholes) in enumerate(zip(images, report.wholes[sample], strict=True)):
        if not wholes:
            raise UserError("The visual tokens of this model form no grid that vlmprune knows: they cannot be drawn.")
        picture = fit(image, high=_ALONE if alone else _AMONG)
        window = window_on(picture, image, processor)
        for whole in wholes:
            found = [shown_of(report, whole, stage, sample, number) for stage in range(len(stages))]
            tints = tints_of(found)
            everything += found
            for (layer, _), shown in zip(stages, found, strict=True):
                place = place_of(layer) if len(wholes) == 1 else f"{whole.name}, {place_of(layer)}"
                count = f"{int((shown.kept >= 0).sum())} of {int((whole.cells >= 0).sum())}"
                panels.append(Panel(draw(picture, shown, window=window, tints=tints), f"{place}: {count}"))
    heading = [*([title] if title else []), *lines, counts_line(report, sample)]
    return sheet(panels, min(len(stages) + (first is not None), ACROSS), heading, legend(everything))


def place_of(layer: int) -> str:
    """A stage in words."""
    return f"before layer {layer}" if layer else "before the LLM"


def counts_line(report: RunReport, sample: int) -> str:
    """A sample's token counts in words."""
    before, after = report.tokens[sample]
    text = f"{before} visual tokens, {after} after pruning, {report.entering[sample]:.1f} entering a layer on average"
    placeless = after - sum(len(slots) for slots in report.kept[sample])
    return text + (f"; {placeless} of the {after} stand at no patch" if placeless > 0 else "")
