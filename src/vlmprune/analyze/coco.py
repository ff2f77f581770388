"""Object masks of COCO's annotation files (instances_val2017.json): polygons, and run lengths in both spellings."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from vlmprune.core.errors import Option, UserError


def coco_masks(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    """For each picture with objects its file name and [height, width] True where any of them is.

    Raises:
        UserError: there is no such file, or it is not COCO's format.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        images = {image["id"]: image for image in content["images"]}
        outlines: dict[Any, list[Any]] = {}
        for one in content["annotations"]:
            outlines.setdefault(one["image_id"], []).append(one["segmentation"])
    except FileNotFoundError:
        raise UserError(f"There is no annotation file {str(path)!r}.") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _unreadable(path, error) from error
    for key, image in images.items():
        if key in outlines:
            try:
                yield str(image["file_name"]), union(outlines[key], image["height"], image["width"])
            except (ValueError, KeyError, TypeError, IndexError) as error:
                raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> UserError:
    return UserError(
        Option("coco", str(path)),
        " is not an annotation file of COCO with images and annotations, such as instances_val2017.json "
        f"({type(error).__name__}: {error}).",
    )


def union(outlines: list[Any], height: int, width: int) -> np.ndarray:
    """[height, width] True inside any of these segmentations."""
    mask = np.zeros((height, width), bool)
    for outline in outlines:
        mask |= _run_lengths(outline, height, width) if isinstance(outline, dict) else _polygons(outline, height, width)
    return mask


def _polygons(polygons: list[list[float]], height: int, width: int) -> np.ndarray:
    """Polygons as [x, y, x, y, ...] in pixels."""
    canvas = Image.new("1", (width, height))
    draw = ImageDraw.Draw(canvas)
    for polygon in polygons:
        if len(polygon) >= 6:
            draw.polygon(list(zip(polygon[::2], polygon[1::2], strict=True)), fill=1, outline=1)
    return np.asarray(canvas, bool)


def _run_lengths(code: dict[str, Any], height: int, width: int) -> np.ndarray:
    """Runs of background and object in turn, down the columns."""
    if list(code["size"]) != [height, width]:
        raise ValueError(f"a mask of {code['size']} in a picture of {[height, width]}")
    counts = code["counts"]
    runs = _decoded(counts) if isinstance(counts, str) else counts
    if sum(runs) != height * width or min(runs, default=0) < 0:
        raise ValueError("a run-length code that does not fill its picture")
    values = np.arange(len(runs)) % 2 == 1
    return np.repeat(values, runs).reshape(width, height).T


def _decoded(text: str) -> list[int]:
    """COCO's compressed run lengths: numbers in groups of five bits, from the fourth on as differences to the last but
    one (pycocotools, maskApi.c, rleFrString)."""
    runs: list[int] = []
    place = 0
    while place < len(text):
        value, shift, more = 0, 0, True
        while more:
            bits = ord(text[place]) - 48
            value |= (bits & 31) << shift
            place, shift, more = place + 1, shift + 5, bool(bits & 32)
            if not more and bits & 16:
                value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
    return runs
