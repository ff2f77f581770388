"""LLaVA-PruMerge: keeps tokens that stand out to the CLS token, and adds to each its most similar tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from vlmprune.author import (
    ClsAttention, EncoderKeys, ImageView, Merged, ModelInfo, Need, TowerFeatures, UserError, ascending, top_k,
)  # fmt: skip
from vlmprune.methods.members import mostly
from vlmprune.methods.outliers import CountsItself, outliers_above

LAST = -1  # encoder layer: on CLIP the one above the features that LLaVA projects
NEIGHBOURS = 32


@dataclass
class PruMerge(CountsItself):
    """Keeps the tokens that stand out to the CLS token, and adds to each the tokens that are similar to it.

    Paper: LLaVA-PruMerge: Adaptive Token Reduction for Efficient Large Multimodal Models (ICCV 2025, arXiv 2403.15388).

    Formula: q, k [n + 1, C] = queries and keys of the encoder's last layer, all heads as one;
    a [n] = softmax(q_0 k^T / sqrt(C)) without the CLS key. Kept: the top (keep - 1) of a. Near(i) = the 32 tokens, kept
    or not, with the highest cos(k_i, k_j). x [n, C] = the tower's features. Out: y_i = x_i + sum over Near(i) of
    a_j x_j for each kept i, by falling a; then one token, the sum of a_j x_j over all tokens that were not kept.
    Time O(keep n C), memory O(keep n).

    Defaults: it takes a budget; the paper counts outliers instead (`adaptive`), about 32 of 576. Each tile by itself;
    positions renumbered on LLaVA, kept elsewhere, with the tokens in order of position. Ours: without a CLS token
    (SigLIP, Qwen) a is the attention received from all tokens. If the projector merges patches, x are projected tokens.

    Args:
        adaptive: keep as many tokens as a has outliers above Q3 + 1.5 (Q3 - Q1); then it takes no budget.
        compat: "official" keeps only the last token if there is no outlier, and refuses fewer than 33 tokens.

    Differences from the authors' code:
        - It takes a budget, and counts outliers one image at a time; theirs counts those of a whole batch.
        - There is at least one outlier, and any number of tokens will do.
        - The weights a_j are not normalised, as in theirs, although the paper speaks of a weighted mean.
        - The last token has no position of its own; it takes that of the token with the largest weight in it.
    """

    name: ClassVar[str] = "prumerge"
    stage: ClassVar[str] = "vision"
    summary: ClassVar[str] = "tokens that stand out to the CLS token; their most similar tokens are added to them"
    merges: ClassVar[bool] = True

    compat: Literal["paper", "official"] = "paper"

    def needs(self, info: ModelInfo) -> dict[str, Need]:
        return {
            "attention": ClsAttention(LAST, joined=True),
            "keys": EncoderKeys(LAST, joined=True),
            "rows": TowerFeatures(),
        }

    def pool(self, info: ModelInfo) -> str:
        return "frame"

    def outliers(self, attention: Tensor) -> int:
        count = outliers_above(attention)
        return count if self.compat == "official" else max(1, count)

    def kept(self, view: ImageView) -> Tensor:
        """The tokens to which others are added, in the order of the output."""
        count = self.outliers(view["attention"].float()) if self.adaptive else view.keep - 1
        return top_k(view["attention"], count)

    def select(self, view: ImageView) -> Merged:
        if self.compat == "official" and view.n <= NEIGHBOURS:
            raise UserError(f"{self.name}: the authors' code needs more than {NEIGHBOURS} tokens, not {view.n}.")
        kept, attention = self.kept(view), view.rated(view["attention"]).float().clamp(0, 1)
        rest = self.rest(kept, view.n)
        keys = nn.functional.normalize(view["keys"].rows.float(), dim=-1)
        pool = ascending(torch.cat([kept, rest]))  # all tokens; any that `kept` repeats twice, and as many missing
        likeness = torch.nan_to_num(keys[kept] @ keys[pool].T)
        likeness.scatter_(1, torch.searchsorted(pool, kept)[:, None], float("-inf"))
        near = pool[torch.sort(likeness, dim=1, descending=True, stable=True).indices[:, : min(NEIGHBOURS, view.n - 1)]]
        weights = attention.new_zeros(len(kept) + 1, view.n)
        weights[:-1].scatter_add_(1, near, attention[near])
        weights[-1, rest] = attention[rest]
        rows = view["rows"].rows.float()
        features = weights @ rows
        features[:-1] += rows[kept]
        anchors = torch.cat([kept, rest[top_k(attention[rest], 1)]])
        made = Merged(features, anchors, space="tower", members=mostly(weights, anchors))
        return made.ordered(anchors.argsort()) if self.positions(view.info) == "original" else made

    @staticmethod
    def rest(kept: Tensor, n: int) -> Tensor:
        """Tokens that the last one sums up, ascending; if `kept` repeats some, as many of the first are missing."""
        left = torch.ones(n, dtype=torch.bool, device=kept.device)
        left[kept] = False
        rest = left.nonzero().squeeze(1)
        return rest[len(kept) + len(rest) - n :]
