"""Segments of a video whose frames are alike, and how a segment's frames share its budget (FastVID)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from vlmprune.author import top_k
from vlmprune.methods.blocks import fill


class Segment(NamedTuple):
    """Successive frames, and how many tokens each keeps: salient ones as they are, and centres that take up others.

    Attributes:
        apart: whether centres take up tokens of their own frame only.
    """

    frames: range
    salient: list[int]
    centres: list[int]
    apart: bool = False


def segments(similarity: Tensor, count: int, limit: float) -> list[range]:
    """A video cut between frames that differ.

    Args:
        similarity: [T - 1] of each frame with the next.
        count: of the T - 1 places, the count - 1 with the lowest similarity are cut.
        limit: so are all with a similarity below it.
    """
    cut = similarity < limit
    cut[top_k(-similarity, count - 1)] = True
    ends = [*(cut.nonzero().squeeze(1) + 1).tolist(), len(similarity) + 1]
    return [range(start, end) for start, end in zip([0, *ends], ends, strict=False)]


def anchors(length: int, stride: int) -> list[int]:
    """Of so many frames the last and every `stride`-th before it, in this order."""
    return list(range(length - 1, -1, -stride))


def shared_exactly(frames: range, sizes: Sequence[int], keep: int, context: float, stride: int) -> Segment:
    """int(keep context) centres are spread evenly over the anchors, the other tokens over all frames as salient ones.

    Centres that find no room in the anchors are salient tokens too.

    Args:
        sizes: of each frame of the segment; together at least `keep`.
    """
    length, places = len(frames), anchors(len(frames), stride)
    wanted = int(keep * context)
    salient = fill([0] * length, sizes, keep - wanted, range(length))
    room = [size - own for size, own in zip(sizes, salient, strict=True)]
    centres = fill([0] * length, room, min(wanted, sum(room[place] for place in places)), places)
    room = [size - own for size, own in zip(sizes, centres, strict=True)]
    return Segment(frames, fill(salient, room, keep - sum(centres), range(length)), centres)


def shared_onevision(frames: range, each: int, context: float, stride: int) -> Segment:
    """Every frame has the same number of salient tokens, and every anchor the same number of centres.

    Args:
        each: tokens per frame.
    """
    own, places, length = int(each * context), anchors(len(frames), stride), len(frames)
    per_anchor = own * length // math.ceil(length / stride)
    centres = [per_anchor if k in places else 0 for k in range(length)]
    return Segment(frames, [each - own] * length, centres, apart=per_anchor == own)


def shared_qwen(frames: range, size: int, each: int, context: float, stride: int, ends: Sequence[int]) -> Segment:
    """Only the last of each run of nearly equal frames keeps tokens; half of it are centres at most.

    Args:
        ends: these last ones, numbered within the segment; the last frame is one.
    """
    length = len(frames)
    wanted = max(int(each * length * context), 1)
    centres = _evenly(length, wanted, [ends[k] for k in anchors(len(ends), stride)])
    salient = _evenly(length, each * length - wanted, ends)
    if length > 1:
        centres = [min(n, size // 2) for n in centres]
        salient = [min(n, size - own) for n, own in zip(salient, centres, strict=True)]
    return Segment(frames, salient, centres)


def _evenly(length: int, total: int, places: Sequence[int]) -> list[int]:
    """`total` spread over these of `length` places, one more for the first ones where it does not divide."""
    counts = [0] * length
    for rank, place in enumerate(places):
        counts[place] = total // len(places) + (rank < total % len(places))
    return counts
