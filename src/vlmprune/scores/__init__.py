"""Attention statistics and edits without eager attention."""

from vlmprune.scores.choice import attention_rows, check_way, computed_by, received_attention
from vlmprune.scores.fusion import fused_attention

__all__ = ["attention_rows", "check_way", "computed_by", "fused_attention", "received_attention"]
