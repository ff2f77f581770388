"""Attention statistics and edits without eager attention."""

from vlmprune.scores.choice import WAYS, attention_rows, computed_by, has_kernels, received_attention
from vlmprune.scores.fusion import fused_attention

__all__ = ["WAYS", "attention_rows", "computed_by", "fused_attention", "has_kernels", "received_attention"]
