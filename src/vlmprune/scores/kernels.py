"""The statistics as Triton kernels. Nothing of heads x queries x keys is ever stored, and each logit is computed twice.

The first pass finds the log-sum-exp of every row, unless the caller has it. The second takes exp(logit - lse): summed
over queries for received attention, which is then [B, H, S]; combined over heads for chosen rows.

Products of sixteen-bit numbers are exact: TF32 holds all their digits. Float32 ones are multiplied without TF32. Sums
are made in one order, so two runs are equal to the last bit.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from vlmprune.scores.seen import Seen

QUERIES, KEYS = 32, 64  # of a block
FAR = 1 << 30  # a window that ends nothing
_OVER = {"mean": 0, "max": 1, "all": 2}


@triton.jit
def _logits(
    q, k, rows, columns, scaling, mask, segments_q, segments_k, batch, n_rows, n_columns, window,
    PRECISION: tl.constexpr, SOFTCAP: tl.constexpr, MASKED: tl.constexpr, SEGMENTS: tl.constexpr,
    CAUSAL: tl.constexpr,
):  # fmt: skip
    """[QUERIES, KEYS] float32 as softmax sees them; -inf where a query does not see the key."""
    logits = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scaling
    if SOFTCAP > 0:
        scaled = logits / SOFTCAP
        small = tl.exp(-2.0 * tl.abs(scaled))
        tanh = (1.0 - small) / (1.0 + small)
        logits = SOFTCAP * tl.where(scaled < 0, -tanh, tanh)
    inside = (rows[:, None] < n_rows) & (columns[None, :] < n_columns)
    seen = inside
    if MASKED:
        at = mask + (batch * n_rows + rows[:, None]).to(tl.int64) * n_columns + columns[None, :]
        seen = seen & (tl.load(at, mask=inside, other=0) != 0)
    if SEGMENTS:
        own = tl.load(segments_q + batch * n_rows + rows, mask=rows < n_rows, other=-1)
        other = tl.load(segments_k + batch * n_columns + columns, mask=columns < n_columns, other=-1)
        seen = seen & (own[:, None] == other[None, :]) & (other[None, :] >= 0)
    if CAUSAL:
        behind = rows[:, None] + (n_columns - n_rows) - columns[None, :]
        seen = seen & (behind >= 0) & (behind < window)
    return tl.where(seen, logits, float("-inf"))


@triton.jit
def _block(base, index, count, width, stride, WIDE: tl.constexpr):
    """[len(index), WIDE] rows of a matrix, 0 beyond it."""
    across = tl.arange(0, WIDE)
    inside = (index[:, None] < count) & (across[None, :] < width)
    return tl.load(base + index[:, None].to(tl.int64) * stride + across[None, :], mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _lse_kernel(
    query, key, mask, segments_q, segments_k, sinks, out, scaling, n_rows, n_columns, width, window, heads, group,
    PRECISION: tl.constexpr, SOFTCAP: tl.constexpr, MASKED: tl.constexpr, SEGMENTS: tl.constexpr,
    CAUSAL: tl.constexpr, SINKS: tl.constexpr,
    WIDE: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """The log-sum-exp [B, H, R] of each row; -inf for a row that sees nothing."""
    rows = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES)
    at = tl.program_id(1)
    batch, head = at // heads, at % heads
    of_key = batch * (heads // group) + head // group
    q = _block(query + at.to(tl.int64) * n_rows * width, rows, n_rows, width, width, WIDE)
    most = tl.full([QUERIES], float("-inf"), tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    for start in range(0, n_columns, KEYS):
        columns = start + tl.arange(0, KEYS)
        k = _block(key + of_key.to(tl.int64) * n_columns * width, columns, n_columns, width, width, WIDE)
        logits = _logits(
            q, k, rows, columns, scaling, mask, segments_q, segments_k, batch, n_rows, n_columns, window,
            PRECISION, SOFTCAP, MASKED, SEGMENTS, CAUSAL,
        )  # fmt: skip
        higher = tl.maximum(most, tl.max(logits, 1))
        shift = tl.where(higher == float("-inf"), 0.0, higher)
        total = total * tl.exp(most - shift) + tl.sum(tl.exp(logits - shift[:, None]), 1)
        most = higher
    if SINKS:
        sink = tl.load(sinks + head).to(tl.float32)
        higher = tl.maximum(most, sink)
        total = total * tl.exp(most - higher) + tl.exp(sink - higher)
        most = higher
    shift = tl.where(total > 0, most, 0.0)
    lse = tl.where(total > 0, shift + tl.log(tl.where(total > 0, total, 1.0)), float("-inf"))
    tl.store(out + at.to(tl.int64) * n_rows + rows, lse, mask=rows < n_rows)


@triton.jit
def _received_kernel(
    query, key, mask, segments_q, segments_k, lse, out, scaling, n_rows, n_columns, width, window, heads, group,
    PRECISION: tl.constexpr, SOFTCAP: tl.constexpr, MASKED: tl.constexpr, SEGMENTS: tl.constexpr,
    CAUSAL: tl.constexpr,
    WIDE: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """The attention [B, H, S] that each key receives at a head, summed over queries."""
    columns = tl.program_id(0) * KEYS + tl.arange(0, KEYS)
    at = tl.program_id(1)
    batch, head = at // heads, at % heads
    of_key = batch * (heads // group) + head // group
    k = _block(key + of_key.to(tl.int64) * n_columns * width, columns, n_columns, width, width, WIDE)
    total = tl.zeros([KEYS], tl.float32)
    for start in range(0, n_rows, QUERIES):
        rows = start + tl.arange(0, QUERIES)
        q = _block(query + at.to(tl.int64) * n_rows * width, rows, n_rows, width, width, WIDE)
        logits = _logits(
            q, k, rows, columns, scaling, mask, segments_q, segments_k, batch, n_rows, n_columns, window,
            PRECISION, SOFTCAP, MASKED, SEGMENTS, CAUSAL,
        )  # fmt: skip
        whole = tl.load(lse + at.to(tl.int64) * n_rows + rows, mask=rows < n_rows, other=0.0)
        whole = tl.where(whole == float("-inf"), 0.0, whole)  # a row that sees nothing gives nothing
        total += tl.sum(tl.exp(logits - whole[:, None]), 0)
    tl.store(out + at.to(tl.int64) * n_columns + columns, total, mask=columns < n_columns)


@triton.jit
def _rows_kernel(
    query, key, mask, segments_q, segments_k, lse, out, scaling, n_rows, n_columns, width, window, heads, group,
    PRECISION: tl.constexpr, SOFTCAP: tl.constexpr, MASKED: tl.constexpr, SEGMENTS: tl.constexpr,
    CAUSAL: tl.constexpr, OVER: tl.constexpr,
    WIDE: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """Attention [B, R, S] as its mean (OVER = 0) or maximum (1) over heads, or [B, H, R, S] (2)."""
    rows = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES)
    columns = tl.program_id(1) * KEYS + tl.arange(0, KEYS)
    batch = tl.program_id(2)
    inside = (rows[:, None] < n_rows) & (columns[None, :] < n_columns)
    place = rows[:, None].to(tl.int64) * n_columns + columns[None, :]
    found = tl.zeros([QUERIES, KEYS], tl.float32)
    for head in range(0, heads):
        at = batch * heads + head
        of_key = batch * (heads // group) + head // group
        q = _block(query + at.to(tl.int64) * n_rows * width, rows, n_rows, width, width, WIDE)
        k = _block(key + of_key.to(tl.int64) * n_columns * width, columns, n_columns, width, width, WIDE)
        logits = _logits(
            q, k, rows, columns, scaling, mask, segments_q, segments_k, batch, n_rows, n_columns, window,
            PRECISION, SOFTCAP, MASKED, SEGMENTS, CAUSAL,
        )  # fmt: skip
        whole = tl.load(lse + at.to(tl.int64) * n_rows + rows, mask=rows < n_rows, other=0.0)
        whole = tl.where(whole == float("-inf"), 0.0, whole)
        share = tl.exp(logits - whole[:, None])
        if OVER == 0:
            found += share
        elif OVER == 1:
            found = tl.maximum(found, share)
        else:
            tl.store(out + at.to(tl.int64) * n_rows * n_columns + place, share, mask=inside)
    if OVER == 0:
        found = found / heads
    if OVER != 2:
        tl.store(out + batch.to(tl.int64) * n_rows * n_columns + place, found, mask=inside)


class _Call:
    """The arguments that all kernels take, of queries [B, H, R, d] and keys [B, Hkv, S, d]."""

    def __init__(self, query: Tensor, key: Tensor, scaling: float, seen: Seen) -> None:
        self.query, self.key = query.contiguous(), key.contiguous()
        self.batch, self.heads, self.rows, width = query.shape
        self.columns = key.shape[2]
        none = self.query  # a pointer that is never read
        self.mask = none if seen.mask is None else seen.mask.expand(self.batch, -1, -1).contiguous().view(torch.uint8)
        own, other = (None, None) if seen.segments is None else seen.segments
        self.own, self.other = (none if ids is None else ids.int().contiguous() for ids in (own, other))
        self.sinks = none if seen.sinks is None else seen.sinks.contiguous()
        group = self.heads // key.shape[1]
        self.sizes = (scaling, self.rows, self.columns, width, seen.window or FAR, self.heads, group)
        self.fixed: dict[str, Any] = {
            "PRECISION": "ieee" if query.dtype == torch.float32 else "tf32",
            "SOFTCAP": float(seen.softcap or 0.0),
            "MASKED": seen.mask is not None,
            "SEGMENTS": own is not None,
            "CAUSAL": seen.causal,
            "WIDE": max(16, triton.next_power_of_2(width)),
            "QUERIES": QUERIES,
            "KEYS": KEYS,
        }
        self.has_sinks = seen.sinks is not None

    def empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=self.query.device)

    def lse(self) -> Tensor:
        out = self.empty(self.batch, self.heads, self.rows)
        grid = (triton.cdiv(self.rows, QUERIES), self.batch * self.heads)
        _lse_kernel[grid](
            self.query, self.key, self.mask, self.own, self.other, self.sinks, out, *self.sizes,
            SINKS=self.has_sinks, **self.fixed,
        )  # fmt: skip
        return out

    def received(self, lse: Tensor) -> Tensor:
        out = self.empty(self.batch, self.heads, self.columns)
        grid = (triton.cdiv(self.columns, KEYS), self.batch * self.heads)
        _received_kernel[grid](
            self.query, self.key, self.mask, self.own, self.other, lse, out, *self.sizes, **self.fixed
        )
        return out

    def rows_over(self, lse: Tensor, heads: str) -> Tensor:
        shape = (self.heads, self.rows, self.columns) if heads == "all" else (self.rows, self.columns)
        out = self.empty(self.batch, *shape)
        grid = (triton.cdiv(self.rows, QUERIES), triton.cdiv(self.columns, KEYS), self.batch)
        _rows_kernel[grid](
            self.query, self.key, self.mask, self.own, self.other, lse, out, *self.sizes, OVER=_OVER[heads],
            **self.fixed,
        )  # fmt: skip
        return out


def log_sum_exp(query: Tensor, key: Tensor, scaling: float, seen: Seen) -> Tensor:
    """[B, H, R] float32 of each row's logits; -inf for one that sees nothing."""
    return _Call(query, key, scaling, seen).lse()


def attention_rows(
    query: Tensor, key: Tensor, scaling: float, seen: Seen, heads: str = "mean", lse: Tensor | None = None
) -> Tensor:
    """As `chunked.attention_rows`."""
    call = _Call(query, key, scaling, seen)
    return call.rows_over(call.lse() if lse is None else lse.float().contiguous(), heads)


def received_sum(query: Tensor, key: Tensor, scaling: float, seen: Seen, lse: Tensor | None = None) -> Tensor:
    """[B, S] float32: what each key receives, summed over heads and queries."""
    call = _Call(query, key, scaling, seen)
    return call.received(call.lse() if lse is None else lse.float().contiguous()).sum(1)
