"""FastV: what the last prompt token looks at early in the LLM."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from vlmprune.core.method import DecoderMethod, Scorer
from vlmprune.core.signals import LastQueryAttention, Need
from vlmprune.core.view import ImageView, ModelInfo


@dataclass
class FastV(Scorer, DecoderMethod):
    """Attention of the last prompt token, at the layer just before the cut.

    Paper: An Image is Worth 1/2 Tokens After Layer 2 (ECCV 2024, arXiv 2403.06764).

    Formula: score [n] = mean over heads of the softmax row of the last prompt token at decoder layer K-1, columns of
    the image; the top `keep` go on from layer K, in image order, at the positions they had.
    Time O(n log n), memory O(n).

    Defaults: K = 2 on every family; the authors keep 50, 25 or 12.5 % of LLaVA-1.5's tokens.

    Args:
        layer: K, the decoder layer (0-based) before which it acts.

    Differences from the authors' code:
        - The count is the budget. Theirs is given outright (research code), round(n (1 - r)) (the Hugging Face port)
          or int(n ratio) (UniPruneBench), which also leaves the kept tokens in order of score.
        - With a cache the choice is made once, at prefill. Without one each forward chooses anew, as theirs does; there
          `logits_to_keep` says how many tokens at the end are not prompt.
        - One row is computed; theirs runs layer K-1 with full attention maps.
    """

    name: ClassVar[str] = "fastv"
    summary: ClassVar[str] = "tokens the last prompt token attends to at decoder layer K-1"

    def needs(self, info: ModelInfo) -> dict[str, Need]:
        return {"attention": LastQueryAttention()}

    def score(self, view: ImageView) -> Tensor:
        return view["attention"]
