"""The attention statistics, by whatever computes them fastest here: Triton kernels on a GPU, else torch in chunks."""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from vlmprune.scores import chunked
from vlmprune.scores.precision import unrounded
from vlmprune.scores.seen import Seen, packed, real_ones

WAYS = ("auto", "torch", "triton")
WIDEST = 256  # of a head, for the kernels
BOUND = 1e-5  # by which the two ways may differ in a share of attention of float32; sixteen-bit products are exact
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class _Asked(threading.local):
    def __init__(self) -> None:
        self.way: str = "auto"
        self.ran: set[str] = set()


_ASKED = _Asked()


def has_kernels() -> bool:
    """Whether Triton is installed."""
    return _kernels() is not None


@contextmanager
def computed_by(way: str) -> Iterator[set[str]]:
    """Compute the statistics of a block in this way; gives the set of those that ran in it."""
    before = _ASKED.way, _ASKED.ran
    _ASKED.way, _ASKED.ran = way, set()
    try:
        yield _ASKED.ran
    finally:
        _ASKED.way, _ASKED.ran = before


def attention_rows(
    query: Tensor,
    key: Tensor,
    scaling: float,
    mask: Tensor | None = None,
    heads: str = "mean",
    softcap: float | None = None,
    sinks: Tensor | None = None,
    *,
    causal: bool = False,
    window: int | None = None,
) -> Tensor:
    """Post-softmax rows of chosen queries.

    Args:
        query: [B, H, R, d], after rotary embedding.
        key: [B, Hkv, S, d]; H is a multiple of Hkv (grouped queries).
        scaling: factor on the logits.
        mask: [B, R, S], True where the query sees the key; every query must see one.
        heads: "mean" or "max" over them, or "all".
        softcap: c, if logits are capped as c tanh(logit / c) (Gemma 2).
        sinks: [H] a logit for each head that takes a share of every row but has no key (gpt-oss).
        causal, window: the queries are the last of the keys and see none behind themselves, and no more than `window`
            up to their own.

    Returns:
        [B, R, S] float32, or [B, H, R, S] for all heads.
    """
    seen = Seen(mask, None, causal, window, softcap, sinks)
    return _run("attention_rows", query, key, scaling, seen, heads)


def received_attention(
    query: Tensor,
    key: Tensor,
    scaling: float,
    real: Tensor | None = None,
    *,
    borders: Tensor | None = None,
    causal: bool = False,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Attention that each key receives, mean over heads and over all queries.

    Args:
        query: [B, H, N, d].
        key: [B, Hkv, S, d].
        real: [B, S], False for padding (then S = N), which is neither attended to nor counted as a query.
        borders: cumulative lengths from 0 to S of sequences packed into one row (B = 1, S = N), each of which sees
            itself alone; the mean is then over the queries of its own.
        causal, window, softcap, sinks: as in `attention_rows`.

    Returns:
        [B, S] float32. Memory grows with N, not with its square.
    """
    if real is not None and borders is not None:
        raise ValueError("give real or borders: packed sequences have no padding")
    segments = None if real is None else real_ones(real, query.shape[2])
    segments = segments if borders is None else packed(borders, query.device)
    total = _run("received_sum", query, key, scaling, Seen(None, segments, causal, window, softcap, sinks))
    if borders is not None:
        lengths = borders.diff().to(query.device)
        return total / (query.shape[1] * lengths[segments[0][0]])  # type: ignore[index]
    queries = query.shape[2] if real is None else real.sum(1, keepdim=True)
    return total / (query.shape[1] * queries)


def log_sum_exp(query: Tensor, key: Tensor, scaling: float, seen: Seen) -> Tensor:
    """[B, H, R] of the logits of queries [B, H, R, d], in float32, or float64 if these are; of sinks as well."""
    return _run("log_sum_exp", query, key, scaling, seen)


def _run(name: str, query: Tensor, key: Tensor, *rest: Any) -> Tensor:
    # Triton launches on the current GPU, wherever its arguments are.
    with torch.cuda.device_of(query), unrounded(query.device):
        way = chosen(query)
        _ASKED.ran.add(way)
        return getattr(_kernels() if way == "triton" else chunked, name)(query, key, *rest)


def chosen(query: Tensor) -> str:
    """ "triton" or "torch", for queries of this device, precision and width."""
    if _ASKED.way != "auto":
        return _ASKED.way
    applies = query.is_cuda and query.dtype in _DTYPES and query.shape[-1] <= WIDEST
    return "triton" if applies and _proven(query.device, query.dtype, query.shape[-1]) else "torch"


@functools.cache
def _kernels() -> Any:
    """The module of the kernels, or None without Triton."""
    try:
        from vlmprune.scores import kernels
    except ImportError:
        return None
    return kernels


@functools.cache
def _proven(device: torch.device, dtype: torch.dtype, width: int) -> bool:
    """Whether the kernels compile here and give what torch gives, on a small example."""
    kernels = _kernels()
    if kernels is None:
        return False
    draw = torch.Generator().manual_seed(0)
    query = torch.randn(1, 4, 70, width, generator=draw).to(device, dtype)
    key = torch.randn(1, 2, 70, width, generator=draw).to(device, dtype)
    seen = Seen(causal=True)
    try:
        for name in ("attention_rows", "received_sum"):
            with torch.cuda.device_of(query):
                own, due = (getattr(way, name)(query, key, width**-0.5, seen) for way in (kernels, chunked))
            if float((own - due).abs().max()) > BOUND * max(1.0, float(due.max())):
                raise ArithmeticError(f"{name} differs from torch's")
    except Exception as error:
        logging.getLogger("vlmprune").warning(
            "Attention statistics are computed by torch, as Triton's kernels do not work here: %s", error
        )
        return False
    return True
