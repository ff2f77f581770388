"""The statistics by their definition, with the whole attention matrix: what the chunked ones must equal."""

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


def attention_rows(query: Tensor, key: Tensor, scaling: float, mask: Tensor | None = None) -> Tensor:
    """Mean over heads of the given queries' rows, [B, R, S]."""
    return attention(query, key, scaling, mask).mean(1)


def received_attention(query: Tensor, key: Tensor, scaling: float) -> Tensor:
    """Attention each key receives, mean over heads and queries, [B, S]."""
    return attention(query, key, scaling).mean((1, 2))
