"""Attention statistics in plain torch, computed in chunks so that heads x N x N numbers are never held at once."""

from __future__ import annotations

import torch
from torch import Tensor

from vlmprune.scores.seen import Seen

CHUNK_ELEMENTS = 1 << 20  # 4 MiB of float32 logits at a time


def softmax_with_sinks(logits: Tensor, sinks: Tensor | None) -> Tensor:
    """Softmax over logits [..., Hkv, G, R, S] and, for each head, a further logit of `sinks` [H] that has no key."""
    if sinks is None:
        return torch.softmax(logits, dim=-1)
    apart = sinks.to(logits).view(*logits.shape[-4:-2], 1, 1).expand(*logits.shape[:-1], 1)
    return torch.softmax(torch.cat([logits, apart], dim=-1), dim=-1)[..., :-1]


def logits_of(query: Tensor, key: Tensor, scaling: float, mask: Tensor | None, seen: Seen) -> Tensor:
    """[B, Hkv, G, R, S] as softmax sees them: heads that share a key stay grouped, so keys are never repeated."""
    dtype = torch.float64 if query.dtype == torch.float64 else torch.float32
    grouped = query.to(dtype).unflatten(1, (key.shape[1], -1))
    logits = (grouped * scaling) @ key.to(dtype).transpose(-1, -2).unsqueeze(2)
    if seen.softcap is not None:
        logits = seen.softcap * torch.tanh(logits / seen.softcap)
    return logits if mask is None else logits.masked_fill(~mask[:, None, None], float("-inf"))


def _softmax(query: Tensor, key: Tensor, scaling: float, mask: Tensor | None, seen: Seen) -> Tensor:
    """[B, Hkv, G, R, S] float32."""
    return softmax_with_sinks(logits_of(query.float(), key.float(), scaling, mask, seen), seen.sinks)


def log_sum_exp(query: Tensor, key: Tensor, scaling: float, seen: Seen) -> Tensor:
    """As `scores.log_sum_exp`."""
    step, queries = _chunks(query, key), query.shape[2]
    found = []
    for i in range(0, queries, step):
        mask = seen.visible(i, min(i + step, queries), query, key)
        found.append(logits_of(query[:, :, i : i + step], key, scaling, mask, seen).logsumexp(-1).flatten(1, 2))
    lse = torch.cat(found, dim=-1)
    return lse if seen.sinks is None else torch.logaddexp(lse, seen.sinks.to(lse)[:, None])


def _chunks(query: Tensor, key: Tensor) -> int:
    """Queries at a time."""
    return max(1, CHUNK_ELEMENTS // max(1, query.shape[0] * query.shape[1] * key.shape[2]))


def attention_rows(query: Tensor, key: Tensor, scaling: float, seen: Seen, heads: str = "mean") -> Tensor:
    """As `scores.attention_rows`."""
    step, queries = _chunks(query, key), query.shape[2]
    rows = []
    for i in range(0, queries, step):
        mask = seen.visible(i, min(i + step, queries), query, key)
        rows.append(_over_heads(_softmax(query[:, :, i : i + step], key, scaling, mask, seen), heads))
    return torch.cat(rows, dim=-2)


def _over_heads(rows: Tensor, heads: str) -> Tensor:
    """[B, Hkv, G, R, S] to [B, R, S], or to [B, H, R, S]."""
    if heads == "all":
        return rows.flatten(1, 2)
    return rows.mean((1, 2)) if heads == "mean" else rows.amax((1, 2))


def received_sum(query: Tensor, key: Tensor, scaling: float, seen: Seen) -> Tensor:
    """[B, S] float32: what each key receives, summed over heads and queries; one that sees nothing gives nothing."""
    step, queries = _chunks(query, key), query.shape[2]
    total = torch.zeros(query.shape[0], key.shape[2], dtype=torch.float32, device=query.device)
    for i in range(0, queries, step):
        mask = seen.visible(i, min(i + step, queries), query, key)
        rows = _softmax(query[:, :, i : i + step], key, scaling, mask, seen)
        if mask is not None:  # softmax over nothing is NaN
            rows = rows.masked_fill(~mask[:, None, None], 0)
        total += rows.sum((1, 2, 3))
    return total
