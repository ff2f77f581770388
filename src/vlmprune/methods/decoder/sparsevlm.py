"""SparseVLM: tokens attended to by the words that match the image; some of the rest are merged and kept too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from vlmprune.author import (
    Act, EnteredEmbeddings, HiddenStates, ImageView, ModelInfo, Need, NotNegative, PromptText, RotaryGain, Selection,
    TextQueryAttention, ascending, top_k,
)  # fmt: skip
from vlmprune.methods.cluster import recycle, recycled
from vlmprune.methods.decoder.sparsevlm_counts import COUNTS, by_rank, without_gravity
from vlmprune.methods.decoder.staged import Staged, interpolate, share_of


@dataclass
class SparseVLM(Staged):
    """Attention from text tokens that match the image (raters); the best of the dropped tokens are recycled.

    Paper: SparseVLM: Visual Token Sparsification for Efficient Vision-Language Model Inference (ICML 2025,
    arXiv 2410.04417).

    Formula: V [N, D], T [M, D] = embeddings with which the image and the text after it entered the LLM. Raters: text
    tokens whose mean over the image of softmax_text(V T^t) exceeds the mean. Relation [n] = mean over raters and heads
    of their softmax rows at layer K-1, in the image's columns. The top k tokens stay; of the d others the top
    r = int(0.3 d) + 1 are clustered (DPC-kNN) into c = int(r / 10) + 1 means of their hidden states, which follow the
    kept ones and are tokens of the image from then on. Time O(n M D + r^2 D) per act, memory O(n M + r^2).

    Defaults: version 1.5 acts before layers 3, 7 and 16 of 32 and keeps 300, 200 and 110 of 576 tokens, plus c, for a
    budget of 192; 303, 110 and 36 for 128; 66, 30 and 17 for 64. Ours: budgets between these are interpolated, and
    counts and layers scale with the image and the depth. The budget is the average that leaves a layer; 14 to 18 more
    enter one (`session.last.entering`). Positions: renumbered on LLaVA, kept elsewhere and in version "+".

    Args:
        layers: decoder layers (0-based) before which it acts, at most three (version 1.0: any number).
        version: "1.5"; "1.0", where k = int(a rank + b) with the rank of the raters' rows (a, b = 13.5, 0 for a budget
            of 192; 9, 6 for 128; 0.8, 0 for 64) and a fourth act before layer 20; or "+" (the code's 2.0), where
            attention is divided by `RotaryGain`, only the 14 heads that then attend most to the image count, and
            nothing is recycled.
        gravity_eps: in version "+", smaller gains are raised to this value. 0 leaves them as they are: far from the
            image gains come close to zero and turn negative, which reverses the order of tokens.

    Differences from the authors' code:
        - If no more tokens arrive than should stay, all stay; theirs drops one. A single text token is a rater, and
          version "+" works with fewer than 14 heads; theirs fails.
        - Ties between equally dense tokens are broken by their order; theirs adds noise, which float16 cannot hold.
        - Only rows of text tokens are computed, at these layers; theirs makes full attention maps at all layers.
    """

    name: ClassVar[str] = "sparsevlm"
    summary: ClassVar[str] = "at several layers, attention from text that matches the image; recycles the rest"
    budget_means: ClassVar[str] = "an average over layers"

    version: Literal["1.5", "1.0", "+"] = "1.5"
    gravity_eps: Annotated[float, NotNegative] = 0.0

    def __post_init__(self) -> None:
        self.version = str(self.version)  # type: ignore[assignment]  # a recipe reads 1.5 as a number
        super().__post_init__()

    @property
    def exact(self) -> bool:
        return self.version == "+"  # the others add recycled tokens to the budget

    @property
    def merges(self) -> bool:
        return self.version != "+"

    def positions(self, info: ModelInfo) -> str:
        return "compact" if info.llava and self.version != "+" else "original"

    def needs(self, info: ModelInfo) -> dict[str, Need]:
        words: dict[str, Need] = {"image": EnteredEmbeddings(), "text": PromptText(after_image=True)}
        if self.version == "+":
            return {**words, "attention": TextQueryAttention(heads="all"), "gain": RotaryGain()}
        return {**words, "attention": TextQueryAttention(), "states": HiddenStates()}

    def usual_layers(self, info: ModelInfo) -> tuple[tuple[int, ...], int]:
        return ((3, 7, 16, 20) if self.version == "1.0" else (3, 7, 16)), 32

    def shares(self, share: float, layers: Sequence[int], info: ModelInfo) -> Sequence[float]:
        if self.version == "1.0":
            return [share] * len(layers)
        return [k / 576 for k in interpolate(COUNTS[self.version], share, of=576)]

    def budget(self, act: Act, n: int, total: int) -> int:
        if self.version == "1.0":  # the rank tells
            return n if share_of(act.keep, total) == 1 else max(1, n - 1)
        return super().budget(act, n, total)

    def left(self, act: Act, n: int, total: int) -> int | None:
        keep = self.budget(act, n, total)
        added = recycled(n - keep) if self.version == "1.5" and keep < n else 0
        return None if self.version == "1.0" else keep + added

    def select(self, view: ImageView) -> Selection:
        raters = self.raters(view)
        relation, share = view.rated(self.relation(view, raters)), share_of(view.act.keep, view.total)
        keep = by_rank(view["attention"][raters], share) if self.version == "1.0" else view.keep
        kept = ascending(top_k(relation, keep))
        if self.version == "+" or keep == view.n:
            return kept
        return recycle(view["states"].visual, kept, relation)

    def raters(self, view: ImageView) -> Tensor:
        """[M] which text tokens are raters."""
        match = (view["image"].float() @ view["text"].float().T).softmax(1).mean(0)
        chosen = match > match.mean()
        return chosen if bool(chosen.any()) else torch.ones_like(chosen)

    def relation(self, view: ImageView, raters: Tensor) -> Tensor:
        """[n] attention that the raters pay to each token; zeros without text."""
        if self.version != "+":
            return view["attention"].float()[raters].mean(0).nan_to_num()
        return without_gravity(view["attention"].float()[:, raters], view["gain"][raters], self.gravity_eps)
