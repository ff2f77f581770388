"""AdaptInfer: attention from the text tokens, each weighted by its attention with the other text tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vlmprune.author import ImageView, ModelInfo, Need, Scorer, TextQueryAttention, TextSelfAttention
from vlmprune.methods.decoder.staged import Staged, interpolate

# For each budget, the tokens left after each act; both are out of 576 (on Qwen out of 100).
LLAVA_7B = {32: (40, 12, 0), 48: (80, 24, 2), 64: (133, 27, 3), 128: (290, 72, 18)}
LLAVA_13B = {64: (148, 40, 5), 128: (300, 94, 30)}
QWEN = {10: (17, 10.2, 3.06), 30: (50, 30, 9), 50: (70, 63, 18.9)}


@dataclass
class AdaptInfer(Scorer, Staged):
    """Attention from the text after the image, weighted by how much its tokens attend to each other.

    Paper: AdaptInfer: Adaptive Token Pruning for Vision-Language Model Inference with Dynamical Text Guidance (arXiv
    2508.06084).

    Formula: A [H, T, T] and B [H, T, n] = softmax rows of the T text tokens after the image at layer K-1, in the
    columns of those text tokens (A) and of the image (B). Weight of text token t in head h: column sum + row sum -
    diagonal of A. Score [n] = sum over h and t of weight [h, t] B [h, t, n]; the top tokens stay, in image order.
    Time O(H T (T + n)) per act, memory O(H T n).

    Defaults: on LLaVA and others it acts before layers 2, 11 and 21 of 32 (also of LLaVA-13B's 40). It keeps 290, 72
    and 18 of 576 tokens for a budget of 128; 133, 27 and 3 for 64; and so on. On Qwen it acts before layers 1, 10 and
    20 of 28 and keeps 17, 10.2 and 3.06 % for a budget of 10 %. Ours: budgets between the paper's are interpolated, and
    counts and layers scale with the image and the depth. The budget is the average that leaves a layer; slightly more
    enter one (`session.last.entering`). Below 48 of 576, possibly no token is left at the end. Positions: renumbered
    on LLaVA, kept elsewhere.

    Args:
        layers: decoder layers (0-based) before which it acts, at most three.

    Differences from the authors' code:
        - Only rows of the text tokens are computed, in float32; theirs computes full attention maps at these layers.
        - If no more tokens arrive than should stay, all stay; theirs drops one. Shares on Qwen are of the image's
          tokens, rounded once; theirs are of the tokens left at each act.
        - Two options that are off in the code are not offered: blending the weights with their mean, and merging the
          dropped tokens.
    """

    name: ClassVar[str] = "adaptinfer"
    summary: ClassVar[str] = "at several layers, attention from text tokens, weighted by attention among them"
    budget_means: ClassVar[str] = "an average over layers"
    least: ClassVar[int] = 0

    def positions(self, info: ModelInfo) -> str:
        return "compact" if info.llava else "original"

    def needs(self, info: ModelInfo) -> dict[str, Need]:
        return {"image": TextQueryAttention(heads="all"), "text": TextSelfAttention()}

    def usual_layers(self, info: ModelInfo) -> tuple[tuple[int, ...], int]:
        if "qwen" in info.family:
            return (1, 10, 20), 28
        return (2, 11, 21), (40 if info.decoder_layers == 40 else 32)

    def shares(self, share: float, layers: Sequence[int], info: ModelInfo) -> Sequence[float]:
        if "qwen" in info.family:
            return [k / 100 for k in interpolate(QWEN, share, of=100)]
        return [k / 576 for k in interpolate(LLAVA_13B if info.decoder_layers == 40 else LLAVA_7B, share, of=576)]

    def score(self, view: ImageView) -> Tensor:
        text = view["text"].float()
        weight = text.sum(1) + text.sum(2) - text.diagonal(dim1=1, dim2=2)
        return torch.einsum("ht,htn->n", weight, view["image"].float())
