"""Pictures, videos and data files that the tests of data sets write."""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vlmprune.data.columns import Columns
from vlmprune.data.sample import Sample
from vlmprune.data.source import Files
from vlmprune.tasks.own import own_task


def picture(number: int = 0, size: tuple[int, int] = (24, 16)) -> Image.Image:
    """Noise, the same for the same number."""
    pixels = np.random.default_rng(number).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def png(number: int = 0, size: tuple[int, int] = (24, 16)) -> bytes:
    file = io.BytesIO()
    picture(number, size).save(file, "PNG")
    return file.getvalue()


def text64(number: int = 0) -> str:
    """The picture as base64."""
    return base64.b64encode(png(number)).decode()


def lines(path: Path, rows: Iterable[Mapping[str, Any] | str]) -> Path:
    """JSON lines; a text is written as it is."""
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def separated(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """CSV or TSV by the ending."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writeheader()
        writer.writerows(rows)
    return path


def own(path: Path) -> list[Sample]:
    """The samples of a user's file or folder."""
    return list(own_task(str(path)).samples())


def read(folder: Path, files: Files, kind: str = "words") -> list[Sample]:
    """The samples of a layout."""
    found = files.find(folder)
    assert found
    return [files.columns.sample("t", row, kind, place) for row, place in files.rows(found)]


def problems(samples: Iterable[Sample]) -> dict[str, str]:
    return {sample.id.partition("/")[2]: sample.problem for sample in samples if sample.problem}


def video(path: Path, frames: int = 20, rate: int = 10, codec: str = "mpeg4") -> Path:
    """A video that grows lighter: frame k is of the grey 10 k."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height = 64, 48
        if codec != "gif":
            stream.pix_fmt = "yuv420p"
        else:
            stream.pix_fmt = "rgb8"
        for number in range(frames):
            grey = np.full((48, 64, 3), min(255, 10 * number), np.uint8)
            frame = av.VideoFrame.from_ndarray(grey, format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


__all__ = ["Columns", "Files", "lines", "own", "picture", "png", "problems", "read", "separated", "text64", "video"]
