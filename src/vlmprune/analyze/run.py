"""`vlmprune analyze`: runs studies and writes what they found."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from vlmprune.analyze import ALL, STUDIES, get_study
from vlmprune.analyze.page import render
from vlmprune.analyze.pictures import Picture
from vlmprune.analyze.study import Asked, Finding
from vlmprune.analyze.subject import Subject, Tell
from vlmprune.analyze.write import write
from vlmprune.core.errors import Option, UserError
from vlmprune.core.outputs import check_folder, make_folder, write_whole

_PARTS = "parts"  # the folder of what later commands need not compute again


@dataclass(frozen=True)
class Done:
    """What became of one study: what it found, or the sentence by which it was left out of all."""

    name: str
    finding: Finding | None
    refused: str = ""


def analyze(
    name: str,
    model: str,
    choose: Callable[[], Sequence[Picture]],
    out: Path,
    limit: int,
    *,
    device: str | None = None,
    force: bool = False,
    tell: Tell = lambda what, done, due: None,
    seed: int = 0,
) -> Iterator[tuple[Done, list[Path]]]:
    """Run a study, or all, and give each as it is done, with the files that were written for it.

    Args:
        name: a study, or "all", which leaves out what this model or these pictures do not allow, and says so.
        model: an embedded model's name, a local folder or a hub id.
        choose: gives the pictures.
        out: the folder of results; the model gets a folder in it.
        limit: questions of each kind, where a study asks some.
        force: write into a folder with files that vlmprune did not write.
        tell: is told of progress.

    Raises:
        UserError: the model or the pictures cannot be used, or files would be lost.
    """
    studies = [(one, get_study(one)) for one in (STUDIES if name == ALL else (name,))]
    check_folder(out, "analysis", force=force)
    folder = out / slug(model)
    subject = Subject(model, folder / _PARTS, device, out)
    asked = Asked(subject, choose(), folder / _PARTS, limit, tell, seed)
    done: list[Done] = []
    for one, study in studies:
        try:
            found = Done(one, study(asked))
        except UserError as error:
            if name != ALL:
                raise
            found = Done(one, None, str(error))
        done.append(found)
        make_folder(out)
        yield found, [] if found.finding is None else write(folder, one, found.finding)
    if all(one.finding is None for one in done):
        raise UserError(done[0].refused)
    if name == ALL:
        page = folder / "index.html"
        write_whole(page, render(model, asked.pictures, [(one.name, one.finding, one.refused) for one in done]))
        yield Done("index", None), [page]


def slug(model: str) -> str:
    """A model's name as a folder's."""
    found = re.sub(r"[^\w.-]+", "-", model.rstrip("/").rpartition("/")[2] if _is_path(model) else model).strip("-.")
    if not found:
        raise UserError(f"The folder {model!r} has no name to call the results by: give its whole path, or ",
                        Option("out"), ".")  # fmt: skip
    return found


def _is_path(model: str) -> bool:
    return Path(model).expanduser().is_dir()
