"""The statistics by their definition, from the whole attention matrix. The chunked ones must equal these."""

from __future__ import annotations

import torch
from torch import Tensor


def attention(query: Tensor, key: Tensor, scaling: float, mask: Tensor | None = None) -> Tensor:
    """softmax(q k^T * scaling) [B, H, R, S] of query [B, H, R, d], key [B, Hkv, S, d], mask [B, R, S] (True: seen)."""
    key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    logits = query.float() @ key.float().transpose(-1, -2) * scaling
    if mask is not None:
        logits = logits.masked_fill(~mask[:, None], float("-inf"))
    return torch.softmax(logits, dim=-1)


def attention_rows(
    query: Tensor, key: Tensor, scaling: float, mask: Tensor | None = None, heads: str = "mean"
) -> Tensor:
    """Rows of the given queries: the mean or max over heads [B, R, S], or those of all heads [B, H, R, S]."""
    rows = attention(query, key, scaling, mask)
    return {"mean": rows.mean(1), "max": rows.amax(1), "all": rows}[heads]


def received_attention(query: Tensor, key: Tensor, scaling: float, real: Tensor | None = None) -> Tensor:
    """Attention each key receives, mean over heads and (real) queries, [B, S]."""
    if real is None:
        return attention(query, key, scaling).mean((1, 2))
    maps = attention(query, key, scaling, real[:, None].expand(-1, query.shape[2], -1))
    return torch.stack([one[:, kept].mean((0, 1)) for one, kept in zip(maps, real, strict=True)])
