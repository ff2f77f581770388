"""Prune-Aware Fusion as an exact correction of the output of an attention kernel.

With lse the log-sum-exp of a row, softmax gave each key exp(A - lse). Raising some logits from A to A' therefore
changes the row's output o to
    (o + sum_j (e^(A'_j - lse) - e^(A_j - lse)) v_j) / (1 + sum_j (e^(A'_j - lse) - e^(A_j - lse))).
The logits of rows x candidates are computed, and the log-sum-exp of the rows that may have a raised logit: a candidate
whose share of what a query sees of the candidates and some other keys is not above the threshold has no larger share of
the whole row.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vlmprune.scores.choice import log_sum_exp
from vlmprune.scores.chunked import CHUNK_ELEMENTS, logits_of, softmax_with_sinks
from vlmprune.scores.seen import Seen

FIRST, EVERY = 16, 4  # keys at the beginning, where attention has its sinks, and of the others every so many
COLLAPSED = 1e-3  # a denominator that fell below this share of the old one has lost too many digits


@dataclass
class Rows:
    """The attention of some queries of one sample.

    Attributes:
        query: [H, R, d], after rotary embedding.
        key: [Hkv, S, d]; H is a multiple of Hkv.
        value: [Hkv, S, dv].
        scaling: factor on the logits.
        visible: [R, S], True where the query sees the key.
        softcap: c of logits capped as c tanh(A / c), or None.
        sinks: [H] a logit for each head that has no key, or None.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    scaling: float
    visible: Tensor
    softcap: float | None = None
    sinks: Tensor | None = None

    @property
    def dtype(self) -> torch.dtype:
        return torch.float64 if self.query.dtype == torch.float64 else torch.float32

    def part(self, rows: slice | Tensor) -> Rows:
        return replace(self, query=self.query[:, rows], visible=self.visible[rows])

    def among(self, keys: Tensor) -> Rows:
        """The same queries, with these keys only."""
        return replace(self, key=self.key[:, keys], value=self.value[:, keys], visible=self.visible[:, keys])

    def step(self) -> int:
        """How many queries to take at a time."""
        return max(1, CHUNK_ELEMENTS // max(1, self.query.shape[0] * self.key.shape[1]))

    @property
    def seen(self) -> Seen:
        return Seen(self.visible[None], softcap=self.softcap, sinks=self.sinks)

    def logits(self) -> Tensor:
        """[Hkv, H / Hkv, R, S] as softmax sees them; heads that share a key stay grouped."""
        return logits_of(self.query[None], self.key[None], self.scaling, self.visible[None], self.seen)[0]

    def sum(self, weights: Tensor) -> Tensor:
        """Sum of the values with these weights: [Hkv, H / Hkv, R, dv]."""
        return weights @ self.value.to(self.dtype).unsqueeze(1)

    def log_sum_exp(self) -> Tensor:
        """[H, R]."""
        return log_sum_exp(self.query[None], self.key[None], self.scaling, self.seen)[0]


def fused_attention(
    output: Tensor,
    rows: Rows,
    groups: list[Tensor],
    lse: Tensor | None = None,
    *,
    strength: float,
    threshold: float,
    top_share: float,
    threshold_over: str = "row",
    positive_only: bool = False,
) -> tuple[Tensor, Tensor]:
    """The output of attention after the logits at some keys are raised, each by `strength` times itself.

    Args:
        output: [R, H, dv] what attention returned without this edit.
        groups: the candidates of each image as columns of `rows.key`.
        lse: [H, R] log-sum-exp of the logits, if the kernel gives it; otherwise it is computed here (`scores.choice`).
        threshold: a candidate is raised only if its share of a row's attention is above this.
        top_share: a candidate is raised only if its logit is among this share of the largest of its image.
        threshold_over: "row": the share is of the whole row's attention; "candidates": of that to candidates only.
        positive_only: leave negative logits alone.

    Returns:
        [R, H, dv] of the type of `output`, and [R, H] True where a logit was raised.
    """
    columns = torch.cat(groups)
    keys = torch.arange(rows.key.shape[1], device=columns.device)
    some = keys[(keys < FIRST) | (keys % EVERY == 0)]
    near = rows.among(torch.cat([columns, some[~torch.isin(some, columns)]]))
    sizes, count = [len(group) for group in groups], len(columns)
    fused, raised = output.clone(), output.new_zeros(output.shape[:2], dtype=torch.bool)
    step, heads = near.step(), (rows.key.shape[0], -1)
    whole = None if lse is None else lse.to(rows.dtype).unflatten(0, heads)
    for i in range(0, len(output), step):
        known = near.part(slice(i, i + step)).logits()
        logits = known[..., :count]
        among = logits.logsumexp(-1, keepdim=True) if threshold_over == "candidates" else None
        over = among if among is not None else known.logsumexp(-1, keepdim=True)
        able = torch.exp(logits - over) > threshold  # NaN where a query sees no candidate: False
        # A GPU is waited for here: which queries may have a raised logit decides what is computed.
        own = able.flatten(0, 1).any(-1).any(0).nonzero().squeeze(1)
        if not len(own):
            continue
        part, logits, queries = rows.part(own + i), logits[:, :, own], own + i
        total = (part.log_sum_exp().unflatten(0, heads) if whole is None else whole[:, :, queries])[..., None]
        over = total if among is None else among[:, :, own]
        chosen = torch.exp(logits - over) > threshold
        chosen &= _largest(logits, sizes, top_share)
        if positive_only:
            chosen &= logits > 0
        edited = logits + strength * logits
        new = _corrected(
            output[queries].transpose(0, 1).unflatten(0, heads), part, columns, total, logits, edited, chosen
        )
        fused[queries] = new.flatten(0, 1).transpose(0, 1).to(output.dtype)
        raised[queries] = chosen.any(-1).flatten(0, 1).T
    return fused, raised


def _corrected(
    output: Tensor, rows: Rows, columns: Tensor, total: Tensor, logits: Tensor, edited: Tensor, chosen: Tensor
) -> Tensor:
    """[Hkv, H / Hkv, R, dv] the output [Hkv, H / Hkv, R, dv] once the `chosen` logits at `columns` are the edited ones.

    Args:
        total: [Hkv, H / Hkv, R, 1] log-sum-exp of all logits.
        logits, edited, chosen: [Hkv, H / Hkv, R, F].
    """
    shift = torch.maximum(total, edited.masked_fill(~chosen, float("-inf")).amax(-1, keepdim=True))
    change = torch.where(chosen, torch.exp(edited - shift) - torch.exp(logits - shift), 0)
    before = torch.exp(total - shift)
    after = before + change.sum(-1, keepdim=True)
    new = (before * output.to(rows.dtype) + rows.among(columns).sum(change)) / after
    # A GPU is waited for here: how many rows need all of their logits decides what is computed.
    if bool((lost := after < COLLAPSED * before).any()):
        # Lowered logits held nearly all of these rows: what is left of the difference is rounding.
        which = lost.flatten(0, 1).any(0).squeeze(-1).nonzero().squeeze(1)
        exact = _dense(rows.part(which), columns, edited[:, :, which], chosen[:, :, which])
        new[:, :, which] = torch.where(lost[:, :, which], exact, new[:, :, which])
    return new


def _largest(logits: Tensor, sizes: list[int], part: float) -> Tensor:
    """Which logits [..., F] are among the largest of their group: the share `part` of the group, rounded up."""
    largest = torch.zeros_like(logits, dtype=torch.bool)
    for among, mark in zip(logits.split(sizes, -1), largest.split(sizes, -1), strict=True):
        count = math.ceil(part * among.shape[-1] - 1e-9)  # 0.07 of 100 are 7, not 7.000000000000001
        mark.scatter_(-1, among.topk(count, -1).indices, True)
    return largest


def _dense(rows: Rows, columns: Tensor, edited: Tensor, chosen: Tensor) -> Tensor:
    """[Hkv, H / Hkv, R, dv] the output of a few rows, computed from all of their logits."""
    step, outputs = rows.step(), []
    for i in range(0, rows.query.shape[1], step):
        part, piece = rows.part(slice(i, i + step)), slice(i, i + step)
        logits = part.logits()
        logits[..., columns] = torch.where(chosen[:, :, piece], edited[:, :, piece], logits[..., columns])
        outputs.append(part.sum(softmax_with_sinks(logits, part.sinks)))
    return torch.cat(outputs, dim=2)
