"""Attention statistics without eager attention."""

from vlmprune.scores.chunked import attention_rows, received_attention

__all__ = ["attention_rows", "received_attention"]
