"""Attention statistics and edits without eager attention."""

from vlmprune.scores.chunked import attention_rows, received_attention
from vlmprune.scores.fusion import fused_attention

__all__ = ["attention_rows", "fused_attention", "received_attention"]
