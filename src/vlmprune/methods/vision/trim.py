"""TRIM: keeps the tokens that CLIP finds most relevant to the question, and the mean of all others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from vlmprune.author import Alignment, ImageView, Merged, ModelInfo, Need, TowerFeatures, ascending, top_k
from vlmprune.methods.members import owned
from vlmprune.methods.outliers import CountsItself, outliers_above
from vlmprune.methods.relevance import mean_cosine, sign_of


@dataclass
class Trim(CountsItself):
    """Keeps the tokens that are relevant to the question, and replaces the others by their mean.

    Paper: Less is More: A Simple yet Effective Token Reduction Method for Efficient Multi-modal LLMs (COLING 2025,
    arXiv 2409.10994).

    Formula: v [n, C] = rows of the tower through CLIP's last LayerNorm and visual projection, t [C] = CLIP's embedding
    of the question, cut at 77 tokens. s [n] = -v t. Kept: the top (keep - 1) of s in order of position; then one token,
    the mean of the tower's features x of all others. Time O(n (C + log n)), memory O(n C).

    Defaults: it takes a budget; the paper counts outliers instead (`adaptive`), about a fifth of 576. Each tile by
    itself; positions renumbered on LLaVA, kept elsewhere, with the tokens in order of position. Ours: without a text
    tower s is the mean cosine of the projected features with the LLM's embeddings of the instruction's tokens.

    Args:
        adaptive: keep as many tokens as softmax(s) has outliers above Q3 + 1.5 (Q3 - Q1), and the mean; then it takes
            no budget.
        metric: "dot", as in the authors' code, or "cosine", as in the paper; by default "dot" with CLIP's text tower.
        relevance_sign: 1 or -1; by default the authors' -1 with CLIP's text tower, and 1 without.
        compat: "official" keeps int(n * (count / n)) tokens, which for some n rounds to one fewer.

    Differences from the authors' code:
        - The budget includes the mean token; theirs returns one token more than its share.
        - One image or tile at a time; theirs counts the outliers of a whole batch.
        - It works on LLaVA-NeXT, where theirs fails.
        - The mean has no position of its own; it takes that of the most relevant token in it.
    """

    name: ClassVar[str] = "trim"
    stage: ClassVar[str] = "vision"
    summary: ClassVar[str] = "tokens that CLIP finds relevant to the question, and the mean of all others"
    merges: ClassVar[bool] = True

    metric: Literal[None, "dot", "cosine"] = None
    relevance_sign: Literal[None, 1, -1] = None
    compat: Literal["paper", "official"] = "paper"

    def needs(self, info: ModelInfo) -> dict[str, Need]:
        return {"rows": TowerFeatures(), "aligned": Alignment(truncate=True)}

    def pool(self, info: ModelInfo) -> str:
        return "frame"

    def similarity(self, view: ImageView) -> Tensor:
        """Relevance of each token, times its sign, [n]."""
        aligned = view["aligned"]
        if (self.metric or ("dot" if aligned.clip else "cosine")) == "cosine":
            found = mean_cosine(aligned)
        else:
            found = (aligned.visual.float() @ aligned.text.float().sum(0) / max(1, len(aligned.text))).nan_to_num()
        return sign_of(self.relevance_sign, aligned) * found

    def select(self, view: ImageView) -> Merged:
        similarity, rows = view.rated(self.similarity(view)), view["rows"].rows.float()
        count = outliers_above(similarity.softmax(0)) if self.adaptive else view.keep - 1
        if self.compat == "official":
            count = int(view.n * (count / view.n))
        kept, rest = top_k(similarity, view.n).tensor_split([count])
        anchors = torch.cat([ascending(kept), rest[:1]])
        features = torch.cat([rows[anchors[:-1]], rows[rest].mean(0, keepdim=True)])
        members = owned(view.n, anchors)
        members[rest] = len(kept)
        made = Merged(features, anchors, space="tower", members=members)
        return made.ordered(anchors.argsort()) if self.positions(view.info) == "original" else made
