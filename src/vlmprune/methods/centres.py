"""Centres of a segment of a video, and the tokens that they take up (FastVID)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from vlmprune.author import ascending, top_k
from vlmprune.methods.cluster import prominences
from vlmprune.methods.segments import Segment

NEIGHBOURS = 4  # of a token, by which its density is told


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
    part: Segment, frames: Sequence[Tensor], rows: Tensor, attention: Tensor, noise: Mapping[int, Tensor] | None
) -> Kept:
    """Which tokens of a segment are salient (by attention [n]) and which are centres (by features [n, D]).

    Args:
        frames: the tokens of each frame of the video.
        noise: what the authors' code adds to the densities of each frame with centres (see `cluster_merge`).
    """
    kept = Kept([], [], [], part.apart)
    for t, salient, count in zip(part.frames, part.salient, part.centres, strict=True):
        first, rest = frames[t][top_k(attention[frames[t]], len(frames[t]))].tensor_split([salient])
        others = ascending(rest)
        if count:
            density = None if noise is None else noise[t]
            order = top_k(prominences(rows[others], NEIGHBOURS, density)[1], count)
        kept.salient.append(first)
        kept.others.append(others)
        kept.centres.append(others[order] if count else others[:0])
    return kept


def nearest(centres: Tensor, others: Tensor) -> Tensor:
    """[p] which of the centres [k, D] each of the others [p, D] joins: that with the highest cosine."""
    return (normalize(others, dim=1) @ normalize(centres, dim=1).T).argmax(1)


def taken_up(centres: Tensor, others: Tensor, joined: Tensor, beta: float) -> Tensor:
    """What becomes of centres [k, D] once each of the others [p, D] has joined the one that `joined` [p] says.

    With c others, a centre x becomes w x + (1 - w) mean of these, w = max(1 / (c + 1), beta).
    """
    # sums by a product with 0/1 weights: a scattered sum would depend on the order of threads on a GPU
    joins = (joined == torch.arange(len(centres), device=centres.device)[:, None]).to(centres.dtype)
    count = joins.sum(1, keepdim=True)
    weight = (1 / (count + 1)).clamp(min=beta)
    return weight * centres + (1 - weight) * (joins @ others) / count.clamp(min=1)
