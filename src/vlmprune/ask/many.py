"""One question about several pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from vlmprune.ask.media import open_media, pictures_in
from vlmprune.ask.run import Answer, Asking, Question, save_sheet, to_stderr
from vlmprune.bench.load import load_model
from vlmprune.core.errors import Option, UserError
from vlmprune.core.outputs import check_folder, check_picture, make_folder
from vlmprune.core.recipe import Recipe
from vlmprune.drawing.overlay import is_flip
from vlmprune.drawing.sheet import shorten


def several(paths: Sequence[Path], each: bool) -> list[Path]:
    """What is asked about, one after another; with `each` the pictures of a folder, which otherwise is one video.

    Raises:
        UserError: a folder holds no pictures, or `each` is given for something that is not a folder.
    """
    if not each:
        return list(dict.fromkeys(paths))
    found = []
    for path in paths:
        if not path.is_dir():
            raise UserError(Option("each", True), f" is for folders, and {str(path)!r} is not one: leave it out.")
        pictures = pictures_in(path)
        if not pictures:
            raise UserError(f"The folder {str(path)!r} holds no pictures.")
        found += pictures
    return list(dict.fromkeys(found))


def ask_each(
    paths: Sequence[Path],
    question: Question,
    model: str,
    recipes: Sequence[Recipe | None],
    overlay: Path | None = None,
    *,
    in_folder: bool = False,
    device: str | None = None,
    dtype: str | None = None,
    text_tower: str | None = None,
    force: bool = False,
    note: Callable[[str], None] = to_stderr,
) -> Iterator[tuple[Path, list[Answer]]]:
    """The answers about each picture or video, as soon as they are there.

    Args:
        recipes: None among them is the unpruned model.
        overlay: a file for the drawing; a folder where there are several pictures, or with `in_folder`.

    Raises:
        UserError: something cannot be used; most of it is found before the model is loaded.
    """
    question.check()
    folder = in_folder or len(paths) > 1
    targets = _targets(paths, overlay, folder, force)
    first = open_media(paths[0], question.frames, question.fps)
    for path in paths[1:]:
        if not path.exists():
            raise UserError(f"There is no picture {str(path)!r}.")
    loaded = load_model(model, device, text_tower, dtype)
    if overlay is not None and folder:
        make_folder(overlay)
    told: set[str] = set()

    def once(sentence: str) -> None:
        if sentence not in told:
            told.add(sentence)
            note(sentence)

    asking = Asking(loaded, question, recipes, text_tower, once)
    for number, path in enumerate(paths):
        media = open_media(path, question.frames, question.fps) if number else first
        answers = asking.of(media)
        if targets:
            save_sheet(media, answers, question, loaded, targets[number])
        yield path, answers


def _targets(paths: Sequence[Path], overlay: Path | None, folder: bool, force: bool) -> list[Path]:
    """Where the drawing of each picture goes; checked."""
    if overlay is None:
        return []
    if not folder:
        return [check_picture(overlay, "overlay", reads=paths, force=force)]
    if overlay.suffix:
        raise UserError(f"There are several pictures: give a folder for the overlays, not the file {str(overlay)!r}.")
    check_folder(overlay, "overlays", force=force)
    names: dict[str, Path] = {}
    for path in paths:
        if (other := names.setdefault(path.name, path)) != path:
            raise UserError(f"The overlays of {str(other)!r} and {str(path)!r} would have one name: ask one by one.")
    return [overlay / f"{path.name}.png" for path in paths]


def rows(path: Path | None, answers: Sequence[Answer]) -> list[str]:
    """The answers as lines of a table, under the picture's path; those that differ from the unpruned one are marked."""
    plain = next((one.text for one in answers if one.report is None), None)
    head = ("", "tokens", "entering", "seconds", "answer")
    cells = [head, *(_cells(one, plain) for one in answers)]
    widths = [max(len(row[column]) for row in cells) for column in range(4)]
    lines = [] if path is None else [str(path)]
    for row in cells:
        numbers = "  ".join(cell.rjust(width) for cell, width in zip(row[1:4], widths[1:], strict=True))
        lines.append(f"{row[0].ljust(widths[0])}  {numbers}  {row[4]}")
    return lines if path is None else [*lines, ""]


def _cells(one: Answer, plain: str | None) -> tuple[str, str, str, str, str]:
    said = shorten(one.text, 200)
    if one.report is None:
        return "unpruned", "", "", f"{one.seconds:.2f}", said
    after, entering = (str(one.report.tokens[0][1]), f"{one.report.entering[0]:.1f}") if one.report.tokens else ("", "")
    changed = " (changed)" if plain is not None and is_flip(one.text, plain) else ""
    return one.recipe or "", after, entering, f"{one.seconds:.2f}", said + changed
