"""PriorTR: what the question attends to more than a token that cannot see the question."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from vlmprune.author import (
    Act, AtLeast, ImageView, ModelInfo, Need, NotNegative, Scorer, Selection, TextQueryAttention, resolve_keep, top_k,
)  # fmt: skip
from vlmprune.methods.decoder.staged import Staged
from vlmprune.methods.relevance import EPS, excess


@dataclass
class PriorTR(Scorer, Staged):
    """Attention of the question, weighted by how far it exceeds that of a token which cannot see the question.

    Paper: PriorTR (ECCV 2026, arXiv 2606.24156).

    Formula: A [H, T, n] = softmax rows of the T text tokens after the image at decoder layer K-1, in the image's
    columns. P [n] = mean over heads and over the question's rows; Q [n] = mean over heads of the null row, that of a
    token between image and question, which cannot see the latter. Both are scaled to sum to 1, and S [n] =
    P ln((P + e) / (Q + e)) with e = 1e-10. The top `keep` enter layer K, in image order.
    Time O(H T n), memory O(T n), with heads="max" O(H T n).

    Defaults: K = 3 (InternVL: 2) at any depth, or the nearest layer behind one with attention. The null row is that of
    the first text token after the image (InternVL: the second, after `</img>`). The question's rows are all T (Qwen:
    all but the last; LLaVA-NeXT: only the last). Other families (ours) do as LLaVA-1.5. Positions are kept.

    Args:
        layers: K, the decoder layer (0-based) before which it acts.
        query: "question", or "last" for the row of the last prompt token alone; by default the authors' of this family.
        null_row: the text token after the image, from 0, that gives Q; by default the authors' of this family.
        heads: "mean", or "max": P and Q are the largest of the heads' means instead of their mean.
        threshold: instead of a budget: all tokens with a score above it stay, or else the best one.
        fill: scores are above 0 for 30 to 45 % of the tokens as a rule. Of the others, by "score" (as in the authors'
            code) those with the least attention come first, as P ln P goes to 0 with P; by "attention" those with most.
        kv_prune: whether the caches of layers 0..K-1 are cut to the kept tokens after the prefill, as in the authors'
            code, so that decoding sees no others.

    Differences from the authors' code:
        - Shares are rounded, scores are float32; theirs rounds shares down, also to no token, and scores to half.
        - Without a null row besides the question's, the last row alone is the score; theirs is 0 everywhere.
        - Each image has its own rows and budget; theirs takes the first image, or one span over all of them.
        - The null token sees a question before the image, and on PaliGemma any question, because there the tokens of
          a prompt see each other in both directions. Then little is corrected.
        - Not offered: several layers with one budget, and the variant 2F, which takes Q from a second forward.
    """

    name: ClassVar[str] = "priortr"
    summary: ClassVar[str] = "tokens that the question attends to more than a token before it does"

    query: Literal[None, "question", "last"] = None
    null_row: Annotated[int, AtLeast(0)] | None = None
    heads: Literal["mean", "max"] = "mean"
    threshold: Annotated[float, NotNegative] | None = None
    fill: Literal["score", "attention"] = "score"
    kv_prune: bool = True
    trims_first_layers: ClassVar[bool] = True

    @property
    def budgeted(self) -> bool:
        return self.threshold is None

    @property
    def exact(self) -> bool:
        return self.budgeted

    def needs(self, info: ModelInfo) -> dict[str, Need]:
        return {"text": TextQueryAttention(heads="all" if self.heads == "max" else "mean")}

    def usual_layers(self, info: ModelInfo) -> tuple[tuple[int, ...], int]:
        return (2 if info.family == "internvl" else 3,), info.decoder_layers  # whatever the depth

    def shares(self, share: float, layers: Sequence[int], info: ModelInfo) -> Sequence[float]:
        return (share,)

    def budget(self, act: Act, n: int, total: int) -> int:
        return resolve_keep(act.keep, n) if self.budgeted else max(1, n - 1)

    def score(self, view: ImageView) -> Tensor:
        count, null = view["text"].shape[-2], self.null(view.info)
        rows = self.question(view.info, count)
        if null >= count or list(rows) == [null]:
            return self.share(view, range(count)[-1:])
        task, prior = self.share(view, rows), self.share(view, range(count)[null : null + 1])
        score = excess(task, prior)  # by "attention" those below 0 in the order of P
        return score if self.fill == "score" else torch.where(score > 0, score, -1 / (task + EPS))

    def null(self, info: ModelInfo) -> int:
        """The null row."""
        return int(info.family == "internvl") if self.null_row is None else self.null_row

    def question(self, info: ModelInfo, count: int) -> range:
        """Which of the `count` rows of text are the question's."""
        if self.query == "last" or (self.query is None and info.family == "llava_next"):
            return range(count)[-1:]
        return range(count - 1 if "qwen" in info.family and count > 1 else count)

    def share(self, view: ImageView, rows: range) -> Tensor:
        """[n] of the attention that these rows pay to the image, the part of each token; zeros without a row."""
        together = view["text"][..., rows.start : rows.stop, :].float().mean(-2).nan_to_num()
        together = together.amax(0) if self.heads == "max" else together
        return together / (together.sum() + EPS)

    def select(self, view: ImageView) -> Selection:
        if self.threshold is None:
            return super().select(view)
        score = self.score(view)
        above = (score > self.threshold).nonzero().squeeze(1)
        return above if len(above) else top_k(score, 1)
