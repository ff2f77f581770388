"""Kind "box": where something is in a picture, right at an intersection over union of at least 0.5 (RefCOCO's rule).

Intersection over union: the area that two boxes share, divided by the area that they cover together.
"""

from __future__ import annotations

import re

from vlmprune.scoring.verdict import UNPARSED, Expected, Verdict

IOU = 0.5  # at least

Edges = tuple[float, float, float, float]  # left, top, right, bottom in percent of the picture's width or height

_NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?![\w]|\.\d)")


def box(reply: str, expected: Expected) -> Verdict:
    """Right where the box in the reply overlaps one of the answers enough."""
    found = extract_box(reply)
    if found is None:
        return UNPARSED
    right = any(iou(found, truth) >= IOU for truth in map(extract_box, expected.answers) if truth is not None)
    return Verdict(" ".join(f"{edge:g}" for edge in found), float(right))


def extract_box(reply: str) -> Edges | None:
    """Left, top, right and bottom, in percent.

    The reply holds four numbers and no others: percent, or shares of 1 where none is above 1 and one has a fraction.
    Or its digits are eight, two for each edge ("1 2 3 4 5 6 7 8"). Words and brackets around them do not matter.
    """
    written = _NUMBER.findall(reply)
    if len(written) == 4:
        edges = [float(number) for number in written]
        shares = max(edges) <= 1 and any("." in number for number in written)
        return _checked([100 * edge for edge in edges] if shares else edges)
    if "." not in "".join(written) and len(digits := "".join(written)) == 8 and digits.isdigit():
        return _checked([float(digits[k : k + 2]) for k in (0, 2, 4, 6)])
    return None


def _checked(edges: list[float]) -> Edges | None:
    if min(edges) < 0 or max(edges) > 100:
        return None
    left, top, right, bottom = edges
    return left, top, right, bottom


def iou(one: Edges, other: Edges) -> float:
    """Intersection over union of two boxes, 0 to 1; a box whose edges are the wrong way round covers nothing."""
    shared = _area(
        (max(one[0], other[0]), max(one[1], other[1]), min(one[2], other[2]), min(one[3], other[3])),
    )
    together = _area(one) + _area(other) - shared
    return shared / together if together > 0 else 0.0


def _area(edges: Edges) -> float:
    left, top, right, bottom = edges
    return max(0.0, right - left) * max(0.0, bottom - top)
