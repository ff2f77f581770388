"""The statistics by their definition, from the whole attention matrix. Every other way must equal these."""

from __future__ import annotations

import torch
from torch import Tensor


def attention(
    query: Tensor,
    key: Tensor,
    scaling: float,
    mask: Tensor | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """softmax(q k^T * scaling) [B, H, R, S] of query [B, H, R, d], key [B, Hkv, S, d], mask [B, R, S] (True: seen).

    A softcap c makes a logit c tanh(logit / c); sinks [H] are further logits of the heads, whose share is left out.
    """
    key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    logits = query.float() @ key.float().transpose(-1, -2) * scaling
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    if mask is not None:
        logits = logits.masked_fill(~mask[:, None], float("-inf"))
    if sinks is None:
        return torch.softmax(logits, dim=-1)
    apart = sinks.float()[None, :, None, None].expand(len(logits), -1, logits.shape[2], 1)
    return torch.softmax(torch.cat([logits, apart], dim=-1), dim=-1)[..., :-1]


def attention_rows(
    query: Tensor,
    key: Tensor,
    scaling: float,
    mask: Tensor | None = None,
    heads: str = "mean",
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Rows of the given queries: the mean or max over heads [B, R, S], or those of all heads [B, H, R, S]."""
    rows = attention(query, key, scaling, mask, softcap, sinks)
    return {"mean": rows.mean(1), "max": rows.amax(1), "all": rows}[heads]


def received_attention(
    query: Tensor,
    key: Tensor,
    scaling: float,
    real: Tensor | None = None,
    mask: Tensor | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Attention each key receives, mean over heads and (real) queries, [B, S]."""
    if real is None:
        return attention(query, key, scaling, mask, softcap, sinks).mean((1, 2))
    maps = attention(query, key, scaling, real[:, None].expand(-1, query.shape[2], -1))
    return torch.stack([one[:, kept].mean((0, 1)) for one, kept in zip(maps, real, strict=True)])
