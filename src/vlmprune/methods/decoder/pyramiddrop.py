"""PyramidDrop: at each stage, keeps the tokens that the last prompt token attends to in the next layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from vlmprune.author import ImageView, LastQueryAttention, ModelInfo, Need, Scorer
from vlmprune.methods.budgets import average_too_small, ratio_for
from vlmprune.methods.decoder.staged import Staged


@dataclass
class PyramidDrop(Scorer, Staged):
    """Keeps fewer tokens at every stage of the LLM, by attention of the last prompt token at the layer ahead.

    Paper: PyramidDrop: Accelerating Your Large Vision-Language Models via Pyramid Visual Redundancy Reduction
    (CVPR 2025, arXiv 2410.17247).

    Formula: the norm, projections and rotary embedding of layer K, applied before it runs, give the row of the last
    prompt token over all tokens that reached the layer; score [n] = mean over heads of the softmax, in the columns of
    the image. Act s = 1, 2, ... keeps the top int(N lambda^s) of the N tokens that reached the first act, in image
    order. Time O(n log n) per act, memory O(n).

    Defaults: `keep` is lambda, 0.5 in the paper (a whole number is what the first act keeps). It acts at the quarter
    points of the depth, before layers 8, 16 and 24 of 32. Positions: renumbered on LLaVA, kept elsewhere, because
    M-RoPE says where in the picture a token is.

    Args:
        layers: decoder layers (0-based) before which it acts.
        average: `keep` is instead the share of tokens that enter a layer on average, from which lambda is computed. It
            then acts at 2/32, 8/32 and 16/32 of the depth, as the authors advise for small budgets: 192, 128 and 64 of
            LLaVA-1.5's 576 tokens mean a lambda of 0.5596, 0.4197 and 0.1916.

    Differences from the authors' code:
        - Left padding, several images in a prompt, and heads that share keys work; theirs takes one image per row.
        - At least one token is kept. Decoding counts positions itself; theirs lowers position ids stage by stage.
        - Training (with rows of all answer tokens) is not part of this.
    """

    name: ClassVar[str] = "pyramiddrop"
    summary: ClassVar[str] = "at several layers, tokens that the last prompt token attends to in the next layer"
    budget_means: ClassVar[str] = "the share that each cut keeps of what the cut before it left"
    looks_ahead: ClassVar[bool] = True

    average: bool = False

    def positions(self, info: ModelInfo) -> str:
        return "compact" if info.llava else "original"

    def needs(self, info: ModelInfo) -> dict[str, Need]:
        return {"attention": LastQueryAttention(ahead=True)}

    def usual_layers(self, info: ModelInfo) -> tuple[tuple[int, ...], int]:
        return ((2, 8, 16) if self.average else (8, 16, 24)), 32

    def shares(self, share: float, layers: Sequence[int], info: ModelInfo) -> list[float]:
        ratio = self.ratio(share, layers, info.decoder_layers) if self.average else share
        return [ratio ** (act + 1) for act in range(len(layers))]

    def ratio(self, average: float, layers: Sequence[int], depth: int) -> float:
        """The lambda with which the share `average` of the tokens enters a layer on average.

        Raises:
            UserError: the layers before the first act alone already exceed that average.
        """
        if average <= layers[0] / depth:
            raise average_too_small("pyramiddrop", average, layers[0], depth)
        return ratio_for(average, [*layers, depth])

    def score(self, view: ImageView) -> Tensor:
        return view["attention"]
