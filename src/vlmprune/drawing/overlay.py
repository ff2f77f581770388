"""`vlmprune.overlay`: what became of a picture's patches, from Python."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from PIL import Image

from vlmprune.core.errors import UserError
from vlmprune.core.report import RunReport
from vlmprune.core.view import Grid
from vlmprune.drawing.compare import Comparison, Side
from vlmprune.drawing.run import draw_run, place_of
from vlmprune.drawing.sheet import Panel, fit
from vlmprune.drawing.shown import shown_of
from vlmprune.drawing.window import seen_window


class HasRun(Protocol):
    """A session (`vlmprune.prune`) under which a prompt has run."""

    recipe: Any
    processor: Any

    @property
    def last(self) -> RunReport: ...


def overlay(
    image: Image.Image | Sequence[Image.Image],
    session: HasRun | Sequence[HasRun],
    *,
    answers: str | Sequence[str] | None = None,
    unpruned: str | None = None,
    question: str = "",
    processor: Any = None,
    sample: int = 0,
) -> Image.Image:
    """Draw what became of a picture's patches: kept, merged into which token, dropped; with a legend.

    Args:
        image: the picture of the prompt, or its pictures in prompt order.
        session: the session after a run. Several sessions, each run on this one picture, are drawn side by side.
        answers: what the model answered under it, or under each of them; stands under the pictures.
        unpruned: what the unpruned model answered. It becomes the first panel, and answers that differ are marked.
        question: stands above.
        processor: the model's processor, which says what its centre crop cuts off. By default the one that
            `vlmprune.prune` was given as its tokenizer.
        sample: which sample of the batch.

    Returns:
        An RGB picture: for one session a panel for each image and each stage, before the LLM and inside it; for several
        a panel each, after the last stage.

    Raises:
        UserError: no prompt with images has run under a session, its tokens form no grid that vlmprune knows, it was a
            video, there are more or fewer pictures or answers than there should be, or it cannot be told which part of
            the picture the model saw.
    """
    images = _pictures(image)
    sessions = list(session) if isinstance(session, Sequence) else [session]
    said = [answers] if isinstance(answers, str) else list(answers or [])
    if not sessions or not images:
        raise UserError("There is nothing to draw: give at least one picture and one session.")
    if said and len(said) != len(sessions):
        raise UserError(f"There are {len(sessions)} sessions and {len(said)} answers: give an answer for each session.")
    for one in sessions:
        _check(one, images, processor or one.processor, sample)
    processor = processor or sessions[0].processor
    if len(sessions) > 1:
        return _several(images, sessions, said, unpruned, question, processor, sample)
    report = sessions[0].last
    asked = f"“{question}” " if question else ""
    lines = [f"{asked}{said[0]}"] if said else [asked] if asked else []
    first = None
    if unpruned is not None:
        first = unpruned_panel(images[0], report, unpruned, sample)
        if said and is_flip(said[0], unpruned):
            lines[-1] += " (changed)"
    return draw_run(
        report, images, title=str(sessions[0].recipe), lines=lines, processor=processor, sample=sample, first=first
    )


def unpruned_panel(image: Image.Image, report: RunReport, answer: str, sample: int = 0) -> Panel:
    """The picture with the unpruned answer, to stand before what a run kept."""
    return Panel(fit(image, high=448), f"unpruned: {report.tokens[sample][0]} tokens\n“{answer}”")


def is_flip(answer: str, unpruned: str) -> bool:
    """Whether an answer is another than the unpruned one, spaces around it aside."""
    return answer.strip() != unpruned.strip()


def _pictures(image: Any) -> list[Image.Image]:
    """The PIL images given. An array would otherwise pass for as many pictures as it has rows."""
    given = list(image) if isinstance(image, list | tuple) else [image]
    wrong = [type(one).__name__ for one in given if not isinstance(one, Image.Image)]
    if wrong:
        raise UserError(f"Give PIL images to draw on, not of type {wrong[0]}: Image.open or Image.fromarray makes one.")
    return given


def _several(
    images: Sequence[Image.Image],
    sessions: Sequence[HasRun],
    said: Sequence[str],
    unpruned: str | None,
    question: str,
    processor: Any,
    sample: int,
) -> Image.Image:
    if len(images) > 1:
        raise UserError(f"Several sessions are drawn side by side on one picture, and {len(images)} are given.")
    before = sessions[0].last.tokens[sample][0]
    sides = [] if unpruned is None else [Side("unpruned", None, before, answer=unpruned)]
    for number, one in enumerate(sessions):
        sides.append(side_of(str(one.recipe), one.last, said[number] if said else None, unpruned, sample))
    window = seen_window(processor, images[0].size)
    return Comparison(images[0], window, sides).sheet([f"“{question}”"] if question else [])


def side_of(name: str, report: RunReport, answer: str | None, unpruned: str | None, sample: int = 0) -> Side:
    """A panel of a comparison, of a run on one picture.

    Raises:
        UserError: it is not known how the slots cover the picture.
    """
    wholes = report.wholes[sample][0]
    if not wholes:
        raise UserError("The visual tokens of this model form no grid that vlmprune knows: they cannot be drawn.")
    layer = report.stages[-1][0] if report.stages else 0
    flipped = answer is not None and unpruned is not None and is_flip(answer, unpruned)
    shown, after = shown_of(report, wholes[0], sample=sample), report.tokens[sample][1]
    return Side(name, shown, after, place_of(layer) if layer else "", answer, "changed" if flipped else "", flipped)


def _check(session: HasRun, images: Sequence[Image.Image], processor: Any, sample: int) -> None:
    report = session.last
    if not report.tokens:
        raise UserError("No prompt with images has run under this session yet: run the model on one first.")
    if not 0 <= sample < len(report.tokens):
        raise UserError(f"sample={sample}: the last batch had {len(report.tokens)} samples, counted from 0.")
    if any(report.videos[sample]):
        raise UserError("A video is drawn frame by frame: use `vlmprune run VIDEO --overlay FILE`.")
    if len(images) != len(report.wholes[sample]):
        raise UserError(f"The prompt had {len(report.wholes[sample])} images, and {len(images)} are given to draw on.")
    if processor is None:
        for image, wholes in zip(images, report.wholes[sample], strict=True):
            _check_shape(image, wholes[0].grid if wholes else None)


def _check_shape(image: Image.Image, grid: Grid | None) -> None:
    """Without a processor nobody knows what a crop has cut off: the grid must have the picture's shape."""
    if grid is None:
        return
    wanted = grid.rows * image.width / image.height
    if abs(wanted - grid.cols) > max(1.0, grid.cols / grid.rows):  # rounded to whole cells on both sides
        raise UserError(
            f"A picture of {image.width}x{image.height} pixels and a grid of {grid.rows} x {grid.cols} tokens differ "
            "in shape, so part of the picture may have been cut off: pass processor=, the model's, which says what."
        )
