"""Attention statistics in plain torch, computed in chunks so that heads x N x N numbers are never held at once."""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK_ELEMENTS = 1 << 20  # 4 MiB of float32 logits at a time


def softmax_with_sinks(logits: Tensor, sinks: Tensor | None) -> Tensor:
    """Softmax over logits [..., Hkv, G, R, S] and, for each head, a further logit of `sinks` [H] that has no key."""
    if sinks is None:
        return torch.softmax(logits, dim=-1)
    apart = sinks.to(logits).view(*logits.shape[-4:-2], 1, 1).expand(*logits.shape[:-1], 1)
    return torch.softmax(torch.cat([logits, apart], dim=-1), dim=-1)[..., :-1]


def _softmax(
    query: Tensor,
    key: Tensor,
    scaling: float,
    mask: Tensor | None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """[B, Hkv, G, R, S] float32: heads that share a key stay grouped, so keys are never repeated."""
    grouped = query.float().unflatten(1, (key.shape[1], -1))
    logits = (grouped * scaling) @ key.float().transpose(-1, -2).unsqueeze(2)
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    if mask is not None:
        logits = logits.masked_fill(~mask[:, None, None], float("-inf"))
    return softmax_with_sinks(logits, sinks)


def _chunks(query: Tensor, key: Tensor) -> int:
    """Queries at a time."""
    return max(1, CHUNK_ELEMENTS // max(1, query.shape[0] * query.shape[1] * key.shape[2]))


def attention_rows(
    query: Tensor,
    key: Tensor,
    scaling: float,
    mask: Tensor | None = None,
    heads: str = "mean",
    softcap: float | None = None,
    sinks: Tensor | None = None,
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

    Returns:
        [B, R, S] float32, or [B, H, R, S] for all heads.
    """
    step = _chunks(query, key)
    rows = []
    for i in range(0, query.shape[2], step):
        seen = None if mask is None else mask[:, i : i + step]
        rows.append(_over_heads(_softmax(query[:, :, i : i + step], key, scaling, seen, softcap, sinks), heads))
    return torch.cat(rows, dim=-2)


def _over_heads(rows: Tensor, heads: str) -> Tensor:
    """[B, Hkv, G, R, S] to [B, R, S], or to [B, H, R, S]."""
    if heads == "all":
        return rows.flatten(1, 2)
    return rows.mean((1, 2)) if heads == "mean" else rows.amax((1, 2))


def received_attention(query: Tensor, key: Tensor, scaling: float, real: Tensor | None = None) -> Tensor:
    """Attention that each key receives, mean over heads and over all queries.

    Args:
        query: [B, H, N, d].
        key: [B, Hkv, S, d].
        real: [B, S], False for padding (then S = N), which is neither attended to nor counted as a query.

    Returns:
        [B, S] float32. At most `CHUNK_ELEMENTS` logits exist at a time, or one query's row if that is longer.
    """
    step = _chunks(query, key)
    total = torch.zeros(query.shape[0], key.shape[2], dtype=torch.float32, device=query.device)
    for i in range(0, query.shape[2], step):
        chunk = query[:, :, i : i + step]
        if real is None:
            total += _softmax(chunk, key, scaling, None).sum((1, 2, 3))
        else:
            rows = _softmax(chunk, key, scaling, real[:, None].expand(-1, chunk.shape[2], -1))
            total += (rows * real[:, None, None, i : i + step, None]).sum((1, 2, 3))
    queries = query.shape[2] if real is None else real.sum(1, keepdim=True)
    return total / (query.shape[1] * queries)
