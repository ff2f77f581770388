"""FasterVLM: keeps the tokens that the CLS token attends to most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from vlmprune.author import ClsAttention, ImageView, ModelInfo, Need, Scorer


@dataclass
class FasterVLM(Scorer):
    """The tokens to which the vision encoder's CLS token pays most attention.

    Paper: [CLS] Attention is All You Need for Training-Free Visual Token Pruning: Make VLM Inference Faster
    (arXiv 2412.01818v1).

    Formula: A [H, n + 1, n + 1] = attention of the layer whose output is projected (CLIP's 23rd of 24, layer 22),
    s [n] = mean over heads of A[h, 0, 1:]; kept = the top `keep` of s, in order of position.
    Time O(n log n), memory O(n).

    Defaults: there are no options. The authors keep 288, 144, 58 or 29 of 576 tokens (0.5, 0.25, 0.1, 0.05) on
    LLaVA-1.5, as many per tile on LLaVA-NeXT, and a share of each frame on Video-LLaVA, with positions renumbered.
    Without a CLS token (SigLIP, Qwen) s is the attention that a token receives from all tokens, averaged over the
    patches of a slot, as the authors advise.

    Differences from the authors' code:
        - On LLaVA-NeXT the model's own tiles are used, not the authors' rule for choosing them; tiles cut by padding
          get budgets in proportion to what is left of them.
        - On Video-LLaVA images are pruned as well as videos.
    """

    name: ClassVar[str] = "fastervlm"
    stage: ClassVar[str] = "vision"
    summary: ClassVar[str] = "the tokens that the vision encoder's CLS token attends to most"

    def needs(self, info: ModelInfo) -> dict[str, Need]:
        return {"attention": ClsAttention()}

    def pool(self, info: ModelInfo) -> str:
        return "frame"

    def score(self, view: ImageView) -> Tensor:
        return view["attention"]
