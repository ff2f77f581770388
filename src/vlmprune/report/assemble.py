"""From a result folder to everything in DIR/report. No model is needed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from PIL import Image

from vlmprune.ask.scenes import slug
from vlmprune.bench.compare import build_tables
from vlmprune.bench.speed_report import has_runs, speed_texts
from vlmprune.bench.table import Table
from vlmprune.core.errors import UserError
from vlmprune.core.extras import check_packages
from vlmprune.core.outputs import check_folder, make_folder
from vlmprune.report import comma_separated
from vlmprune.report.agreement import Agreement, agreements
from vlmprune.report.agreement_text import agreement_csv
from vlmprune.report.beside import beside, beside_csv, beside_markdown
from vlmprune.report.flips import flips
from vlmprune.report.kept import examples_of
from vlmprune.report.latex import latex
from vlmprune.report.markdown import markdown
from vlmprune.report.page import render
from vlmprune.report.plots import AXES, Style, accuracy_figure, lines_of, png, styles, svg
from vlmprune.report.rank_plot import rank_figure
from vlmprune.report.sheets import sheet_of
from vlmprune.report.tables import blocks, rankings


def check_report(folder: str | Path, *, force: bool = False) -> Path:
    """Where the report of a result folder goes.

    Raises:
        UserError: a package that draws it is missing, or DIR/report holds files of others and `force` is not given.
    """
    check_packages("report")
    return check_folder(Path(folder) / "report", "report", force=force)


def build(
    folder: str | Path, *, force: bool = False, published: bool = False, tables: list[Table] | None = None
) -> list[Path]:
    """Write the report of a result folder.

    DIR/report/ gets `summary.md`, `summary.csv`, `summary.tex`, `categories.csv`, `ranks.csv`, `flips.csv`, plots of
    each model (accuracy by each token count, ranks) as .svg and .png under `plots/`, a sheet of overlays for each
    example scene under `overlays/`, and `index.html`; `agreement.csv` where a model's methods are among those of a
    published table, `frames.csv` where tasks were run with several numbers of frames; of timings `speed.md` and
    `speed.csv`, and these alone where the folder holds no answers.
    The same results give the same bytes.

    Args:
        folder: what `vlmprune bench --out` named.
        force: write into DIR/report although it holds files that vlmprune has not written.
        published: write `published.md` and `published.csv` too, the papers' figures beside those measured.
        tables: the folder's, where they have been made already.

    Returns:
        The files written, `index.html` last where there are answers.

    Raises:
        UserError: no such folder, no finished run in it, a broken file, a folder that may not or cannot be written, or
            a missing package.
    """
    folder = Path(folder)
    out = check_report(folder, force=force)
    speed = speed_texts(folder)
    try:
        written = [_text(make_folder(out) / name, text) for name, text in speed.items()]
        if written and not has_runs(folder):
            return written
    except OSError as error:
        raise UserError(f"The report cannot be written to {str(out)!r}: {error.strerror or error}.") from error
    tables = build_tables(folder) if tables is None else tables
    changed = [(table, flips(table)) for table in tables]
    agreed = {table.model: agreements(table) for table in tables}
    try:
        for part in (make_folder(out) / "plots", out / "overlays"):
            part.mkdir(exist_ok=True)
        written += [
            _text(out / "summary.md", markdown(tables, agreed)),
            _text(out / "summary.csv", comma_separated.summary(tables)),
            _text(out / "categories.csv", comma_separated.categories(tables)),
            _text(out / "ranks.csv", comma_separated.ranks(tables)),
            _text(out / "flips.csv", comma_separated.flipped(changed)),
            _text(out / "summary.tex", latex(tables)),
        ]
        by_frames = comma_separated.frames(tables) if any(table.by_frames for table in tables) else None
        written += _optional(out, {"frames.csv": by_frames})
        style = styles(lines_of(tables))
        for table in tables:
            written += _plots(out / "plots", table, style)
            written += _overlays(out / "overlays", folder, table)
        _forget(out, written)
        written += _optional(out, _agreed(tables, agreed) | _beside(tables if published else ()))
        return [*written, _text(out / "index.html", render(folder, changed, style, agreed))]
    except OSError as error:
        raise UserError(f"The report cannot be written to {str(out)!r}: {error.strerror or error}.") from error


def _agreed(tables: Sequence[Table], agreed: Mapping[str, Sequence[Agreement]]) -> dict[str, str | None]:
    found = [(table, agreed[table.model]) for table in tables if agreed[table.model]]
    return {"agreement.csv": agreement_csv(found) if found else None}


def _beside(tables: Sequence[Table]) -> dict[str, str | None]:
    """Of tables that are to be put beside the papers' figures."""
    pairs = beside(tables)
    return {
        "published.md": beside_markdown(pairs) if tables else None,
        "published.csv": beside_csv(pairs) if tables else None,
    }


def _optional(out: Path, texts: Mapping[str, str | None]) -> list[Path]:
    """Write the texts that there are, and remove those that older results had."""
    for name in (name for name, text in texts.items() if text is None):
        (out / name).unlink(missing_ok=True)
    return [_text(out / name, text) for name, text in texts.items() if text is not None]


def _forget(out: Path, written: Sequence[Path]) -> None:
    """Remove the pictures of older results, of models or scenes that are no longer there; only what has such a name."""
    drawn = {"plots": rf".+-({'|'.join([*AXES, 'ranks'])})\.(svg|png)", "overlays": r".+-\d+\.png"}
    for name, shape in drawn.items():
        for path in (out / name).iterdir():
            if path not in written and re.fullmatch(shape, path.name):
                path.unlink()


def _text(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8", newline="\n")
    return path


def _plots(out: Path, table: Table, style: dict[str, Style]) -> list[Path]:
    figures = {axis: partial(accuracy_figure, table, axis, style) for axis in AXES}
    if rankings(table):
        figures["ranks"] = partial(rank_figure, table, style)
    written = []
    for name, figure in figures.items():
        path = out / f"{slug(table.model)}-{name}.svg"
        written.append(_text(path, svg(figure())))
        path = path.with_suffix(".png")
        path.write_bytes(png(figure()))
        written.append(path)
    return written


def _overlays(out: Path, folder: Path, table: Table) -> list[Path]:
    """A sheet for each scene at the smallest budget that is a share or a number, where the folder has examples."""
    recipes = smallest_budget(table)
    written = []
    for number, example in enumerate(examples_of(folder, table)):
        path = out / f"{slug(table.model)}-{number + 1}.png"
        _image(path, sheet_of(folder, example, recipes))
        written.append(path)
    return written


def _image(path: Path, image: Image.Image) -> None:
    image.save(path, optimize=True)


def smallest_budget(table: Table) -> Sequence[str]:
    """The recipes of the table's smallest budget."""
    named = [block for block in blocks(table) if block.asked is not None]
    return [row.recipe for row in (named or blocks(table))[-1].rows if not row.is_vanilla]
