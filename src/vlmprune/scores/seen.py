"""Which keys a query sees, and what else shapes the logits of attention, for every way of computing statistics."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Seen:
    """What of R queries and S keys enters the softmax. All that is given must hold.

    Attributes:
        mask: [B, R, S], True where the query sees the key.
        segments: ids [B, R] of queries and [B, S] of keys; a query sees the keys that have its id, and none has -1.
        causal: the queries are the last of the keys, and see none behind themselves.
        window: with `causal`, how many keys up to its own a query sees; None for all.
        softcap: c of logits that are capped as c tanh(logit / c).
        sinks: [H] a logit for each head that takes a share of every row but has no key.
    """

    mask: Tensor | None = None
    segments: tuple[Tensor, Tensor] | None = None
    causal: bool = False
    window: int | None = None
    softcap: float | None = None
    sinks: Tensor | None = None

    def visible(self, start: int, end: int, query: Tensor, key: Tensor) -> Tensor | None:
        """[B or 1, end - start, S] for some of the queries [B, H, R, d]; None where all see all keys [B, Hkv, S, d]."""
        masks, keys = [], key.shape[2]
        if self.mask is not None:
            masks.append(self.mask[:, start:end])
        if self.segments is not None:
            own, other = self.segments
            masks.append((own[:, start:end, None] == other[:, None]) & (other[:, None] >= 0))
        if self.causal:
            place = torch.arange(start, end, device=query.device) + keys - query.shape[2]
            behind = place[:, None] - torch.arange(keys, device=query.device)
            masks.append(((behind >= 0) & (behind < (keys if self.window is None else self.window)))[None])
        return functools.reduce(torch.logical_and, masks) if masks else None


def real_ones(real: Tensor, queries: int) -> tuple[Tensor, Tensor]:
    """`Seen.segments` where some of the tokens [B, S] are padding: that sees nothing, and nobody sees it."""
    ids = real.int() - 1
    return torch.where(real[:, real.shape[1] - queries :], 0, -2), ids


def packed(borders: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """`Seen.segments` of sequences packed into one row; borders: their cumulative lengths, from 0 to S."""
    ids = torch.repeat_interleave(torch.arange(len(borders) - 1), borders.diff().cpu()).to(device)[None]
    return ids, ids
