"""Segments of a video whose frames are alike, and how a segment's frames share its budget (FastVID)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from vlmprune.author import ascending, top_k
from vlmprune.methods.blocks import fill
from vlmprune.methods.cluster import prominences


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


class Kept(NamedTuple):
    """The tokens of a segment.

    Attributes:
        salient, others: of each frame.
        centres: those of each frame's others that are kept, the most prominent first.
        apart: see `Segment`.
    """

    salient: list[Tensor]
    others: list[Tensor]
    centres: list[Tensor]
    apart: bool

    @property
    def kept(self) -> list[Tensor]:
        return [*self.salient, *self.centres]

    def pools(self, joined: bool) -> Iterator[tuple[Tensor, Tensor]]:
        """The centres of each frame that has some, and the tokens that they take up.

        Args:
            joined: whether each centre also counts as one of those that it takes up (LLaVA-OneVision).
        """
        for own, centres in zip(self.others, self.centres, strict=True):
            if not len(centres):
                continue
            pool = own if self.apart else torch.cat(self.others)
            if joined:
                yield centres, pool
            else:
                yield ascending(centres), pool[~torch.isin(pool, centres)]


def kept_of(
    part: Segment, frames: Sequence[Tensor], rows: Tensor, attention: Tensor, neighbours: int,
    noise: Mapping[int, Tensor] | None,
) -> Kept:  # fmt: skip
    """Which tokens of a segment are salient (by attention [n]) and which are centres (by features [n, D]).

    Args:
        frames: the tokens of each frame of the video.
        neighbours, noise: see `prominences`; the noise by frame.
    """
    kept = Kept([], [], [], part.apart)
    for t, salient, count in zip(part.frames, part.salient, part.centres, strict=True):
        first, rest = frames[t][top_k(attention[frames[t]], len(frames[t]))].tensor_split([salient])
        others = ascending(rest)
        if count:
            density = None if noise is None else noise[t]
            order = top_k(prominences(rows[others], neighbours, density)[1], count)
        kept.salient.append(first)
        kept.others.append(others)
        kept.centres.append(others[order] if count else others[:0])
    return kept


def taken_up(centres: Tensor, others: Tensor, beta: float) -> Tensor:
    """What becomes of centres [k, D] once each of the others [p, D] has joined the one with the highest cosine.

    With c others, a centre x becomes w x + (1 - w) mean of these, w = max(1 / (c + 1), beta).
    """
    joined = (normalize(others, dim=1) @ normalize(centres, dim=1).T).argmax(1)
    # sums by a product with 0/1 weights: a scattered sum would depend on the order of threads on a GPU
    joins = (joined == torch.arange(len(centres), device=centres.device)[:, None]).to(centres.dtype)
    count = joins.sum(1, keepdim=True)
    weight = (1 / (count + 1)).clamp(min=beta)
    return weight * centres + (1 - weight) * (joins @ others) / count.clamp(min=1)
