"""GridPrune: the question decides each zone's budget; the most salient tokens of a zone fill it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from vlmprune.author import (
    Alignment, AtLeast, ClsAttention, ImageView, Method, ModelInfo, Need, Positive, Share, ascending, top_k,
)  # fmt: skip
from vlmprune.methods.blocks import blocks, fill
from vlmprune.methods.relevance import mean_cosine


@dataclass
class GridPrune(Method):
    """Global guidance, local selection: the question gives each zone a budget, which its most salient tokens fill.

    Paper: GridPrune: From "Where to Look" to "What to Select" in Visual Token Pruning for MLLMs (arXiv 2511.10081).

    Formula: r_i = cos(v_i, t), v [n, C] the tokens and t [C] the question in CLIP's common space; a [n] attention of
    the CLS token. There are zones x zones blocks. P = softmax over zones of (mean of r in the zone) / temperature; zone
    j gets k_j = round(keep P_j), with sum keep. In each zone the top k_j of (1 - alpha) (r + 1) / 2 + alpha a stay.
    Without a text tower v are the projected features and r_i is the mean of the cosines to the LLM's embeddings of the
    instruction's tokens; without text r is 0 and zones of equal size get equal budgets.
    Time O(n (M C + log n)), memory O(n M), M rows of text.

    Defaults: 4 x 4 zones per frame or tile, alpha 0.5, temperature 1. LLaVA renumbers positions, Qwen2.5-VL keeps them.

    Args:
        zones: zones along each side of a frame.
        alpha: weight of the attention against the relevance, 0 to 1.
        temperature: of the softmax over zones. Means of cosines differ little, so at 1 budgets are nearly even.
        relevance_sign: 1, or -1 for features that point away from the text, as CLIP's patches do.
        saliency: "minmax" scales a to 0..1 over the image, which makes it comparable to the relevance; "raw" does not.

    Differences from the authors' code: none is public; this is a reconstruction from the paper's formulas.
        - Ours: the number of zones, alpha, min-max scaling, rounding by largest remainders, and that a budget beyond
          the size of its zone goes to the other zones in order of P.
        - The paper does not say what is done on models without a text tower (Qwen2.5-VL is in its tables).
    """

    name: ClassVar[str] = "gridprune"
    stage: ClassVar[str] = "vision"
    summary: ClassVar[str] = "the most salient tokens of each zone, whose budget is its relevance to the text"

    zones: Annotated[int, AtLeast(1)] = 4
    alpha: Annotated[float, Share] = 0.5
    temperature: Annotated[float, Positive] = 1.0
    relevance_sign: Literal[1, -1] = 1
    saliency: Literal["minmax", "raw"] = "minmax"

    def needs(self, info: ModelInfo) -> dict[str, Need]:
        return {"aligned": Alignment(truncate=True), "attention": ClsAttention()}

    def select(self, view: ImageView) -> Tensor:
        relevance, attention = self.relevance(view), view["attention"].float()
        if self.saliency == "minmax":
            low, high = attention.aminmax()
            attention = (attention - low) / (high - low).clamp(min=torch.finfo(torch.float32).tiny)
        score = (1 - self.alpha) * (relevance + 1) / 2 + self.alpha * attention
        view.rated(score)
        zones = blocks(view, self.zones, self.zones)
        budgets = self.budgets(view.keep, [relevance[zone].mean() for zone in zones], [len(zone) for zone in zones])
        return ascending(torch.cat([zone[top_k(score[zone], k)] for zone, k in zip(zones, budgets)]))

    def relevance(self, view: ImageView) -> Tensor:
        """Relevance of each token to the text, -1 to 1, [n]."""
        return self.relevance_sign * mean_cosine(view["aligned"])

    def budgets(self, keep: int, relevance: list[Tensor], sizes: list[int]) -> list[int]:
        """Tokens to keep in each zone, from the zones' mean relevance and sizes."""
        means = torch.stack(relevance).double()
        share = torch.softmax((means - means.max()) / self.temperature, dim=0)  # at most 0: no overflow
        quota = keep * share
        counts = quota.floor()
        counts[top_k(quota - counts, keep - int(counts.sum()))] += 1
        return fill(counts.long().tolist(), sizes, keep, top_k(share, len(sizes)).tolist())
