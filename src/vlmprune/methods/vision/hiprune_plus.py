"""HiPrune++: HiPrune, with some tokens chosen by their similarity to the text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor, nn

from vlmprune.author import Alignment, ImageView, ModelInfo, Need, Share, top_k
from vlmprune.methods.vision.hiprune import HiPrune


@dataclass
class HiPrunePlus(HiPrune):
    """HiPrune, with a part of the budget for other tokens that are most similar to the prompt.

    Paper: HiPrune: Training-Free Visual Token Pruning via Hierarchical Attention (ACL 2026, arXiv 2508.00553v3).

    Formula: AB (anchors with their neighbours) and R (registers) as in HiPrune; x [n, C] and t [T, C] = tokens and
    text, in CLIP's common space if a text tower is given, otherwise the projected features and the LLM's embeddings of
    the instruction. r_i = cos(x_i, mean of t) [n], 0 without text; B = the top round(keep * beta) of r outside AB and
    R, which replace the weakest of R; kept = AB, R and B. Time O(n (C + log n)), memory O(n C).

    Defaults: beta 0.1 on all models; CLIP's text tower on LLaVA, the LLM's embeddings on Qwen; otherwise as HiPrune.

    Args:
        beta: share of the budget for tokens chosen by the text, 0 to 1.
        relevance_sign: 1, or -1 for features that point away from the text, as CLIP's patches do.
        compat: "official" adds B on top of the budget, and takes registers as HiPrune's code does.

    Differences from the authors' code: none is public for this part; it is a reconstruction from the paper.
        - The budget includes B. The rows of the paper's tables name the budget without B.
        - |B| is round(keep * beta), as in the paper's text; its listing divides by 5, as for anchors.
        - LLaVA does not include the text tower of its CLIP; unless it is given, LLaVA is treated like Qwen2.5-VL.
    """

    name: ClassVar[str] = "hiprune++"
    summary: ClassVar[str] = "HiPrune, and some other tokens that are most similar to the prompt's text"

    beta: Annotated[float, Share] = 0.1
    relevance_sign: Literal[1, -1] = 1

    def needs(self, info: ModelInfo) -> dict[str, Need]:
        return {**super().needs(info), "aligned": Alignment()}

    def named(self, view: ImageView) -> dict[str, Tensor]:
        near, registers = self.parts(view)
        wanted = round(view.keep * self.beta)
        if self.compat != "official":
            wanted = min(wanted, len(registers))
            registers = registers[: len(registers) - wanted]
        left = torch.ones(view.n, dtype=torch.bool, device=near.device)
        left[torch.cat([near, registers])] = False
        rest = left.nonzero().squeeze(1)
        asked = rest[top_k(self.relevance(view)[rest], wanted)]
        anchor = torch.isin(near, self.anchors(view))
        return {"anchors": near[anchor], "buffers": near[~anchor], "registers": registers, "closest to the text": asked}

    def relevance(self, view: ImageView) -> Tensor:
        """Cosine of each token with the mean of the text, times `relevance_sign`, [n]."""
        visual, text = view["aligned"][:2]
        if not len(text):
            return visual.new_zeros(view.n)
        mean = nn.functional.normalize(text.float().mean(0), dim=0)
        return self.relevance_sign * (nn.functional.normalize(visual.float(), dim=1) @ mean)
