"""The files of a study: figures as PNG and SVG, tables as CSV, what they show as Markdown."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from vlmprune.analyze.study import Finding, Sheet
from vlmprune.core.errors import UserError
from vlmprune.core.outputs import write_whole
from vlmprune.report.plots import png, svg


def write(folder: Path, name: str, finding: Finding) -> list[Path]:
    """Write a finding.

    Returns:
        The files, the paragraph first.

    Raises:
        UserError: the folder cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for stale in [*folder.glob(f"{name}-*.png"), *folder.glob(f"{name}-*.svg")]:
            stale.unlink()  # figures of an earlier command that had more pictures
        written = [folder / f"{name}.md"]
        write_whole(written[0], markdown(finding))
        for title, figure in finding.figures.items():
            drawn = svg(figure)  # before the PNG, which lays the figure out a little differently
            write_whole(folder / f"{title}.svg", drawn)
            (folder / f"{title}.png").write_bytes(png(figure))
            written += [folder / f"{title}.png", folder / f"{title}.svg"]
        for title, sheet in finding.sheets.items():
            write_whole(folder / f"{title}.csv", as_csv(sheet))
            written.append(folder / f"{title}.csv")
    except OSError as error:
        raise UserError(f"The analysis cannot be written to {str(folder)!r}: {error.strerror or error}.") from error
    return written


def as_csv(sheet: Sheet) -> str:
    """The table as text."""
    out = io.StringIO()
    rows = csv.writer(out, lineterminator="\n")
    rows.writerow(sheet.head)
    rows.writerows([["" if cell != cell else cell for cell in row] for row in sheet.rows])  # NaN: not known
    return out.getvalue()


def markdown(finding: Finding) -> str:
    """What it shows, with its figures."""
    shown = [f"![{finding.title}]({title}.png)" for title in finding.figures]
    return "\n\n".join([f"# {finding.title}", *finding.text, *shown]) + "\n"
