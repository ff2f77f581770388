"""V2Drop: at several layers, keeps the tokens that the layer before has changed most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from vlmprune.author import Act, ImageView, LayerInput, LayerOutput, ModelInfo, Need, Scorer
from vlmprune.methods.decoder.staged import Staged, share_of


@dataclass
class V2Drop(Scorer, Staged):
    """Keeps the tokens whose hidden states a decoder layer has changed most; it reads no attention.

    Paper: Variation-aware Vision Token Dropping for Faster Large Vision-Language Models (CVPR 2026, arXiv 2509.01552).

    Formula: h, h' [n, D] = the image's tokens as decoder layer K-1 was given and as it returned them; score [n] =
    |h'_i - h_i|_2, the length of what attention and MLP of that layer add. Of the n tokens that reach it, act s keeps
    the top max(1, int(n r_s)), in image order. Time O(n D) per act, memory O(n D).

    Defaults: `keep` is r_1 (a whole number is what the first act keeps). On LLaVA and others r_2 = r_1 and the acts
    are before layers 3, 17 and 22 of 32; on Qwen r_2 = r_1 / 5, before layers 3, 16 and 22 of 28. r_3 = 0, so that a
    single token is left behind the last act. The authors' r_1 is 0.5 on LLaVA-1.5, where 203 of 576 tokens enter a
    layer on average, and 0.25 on Qwen2-VL. Ours: layers scale with the depth, and a budget of all tokens cuts nothing.
    Positions are kept.

    Args:
        layers: decoder layers (0-based) before which it acts, at most three. With one, nothing but `keep` counts.

    Differences from the authors' code:
        - The image is found in the prompt. On LLaVA theirs takes columns 35 to 610, also of a long prompt without an
          image, and only the first 576 tokens of an image cut into tiles.
        - Several images, batches and padding work; theirs selects for the whole batch by its first sample.
        - The change is computed in float32; theirs is rounded to the model's type.
        - Only LLaVA-1.5, LLaVA-OneVision and Qwen2-VL are theirs. On Qwen3-VL the features that the model adds between
          its first layers (deepstack) are not counted as a change.
    """

    name: ClassVar[str] = "v2drop"
    summary: ClassVar[str] = "at several layers, tokens whose hidden states the layer before changed most"
    budget_means: ClassVar[str] = "the share that the first cut keeps, before the last one leaves a single token"
    reads_attention: ClassVar[bool] = False

    def needs(self, info: ModelInfo) -> dict[str, Need]:
        return {"before": LayerInput(), "after": LayerOutput()}

    def usual_layers(self, info: ModelInfo) -> tuple[tuple[int, ...], int]:
        return ((3, 16, 22), 28) if "qwen" in info.family else ((3, 17, 22), 32)

    def shares(self, share: float, layers: Sequence[int], info: ModelInfo) -> Sequence[float]:
        """The share of the tokens that reach it which each act keeps."""
        return share, share / 5 if "qwen" in info.family else share, 0.0

    def budget(self, act: Act, n: int, total: int) -> int:
        share = share_of(act.keep, total)
        if share == 1:
            return n
        ratio = self.shares(share, act.decoder_layers, act.info)[act.number]
        return min(n, max(1, int(n * ratio + 1e-6)))  # 0.29 of 100 tokens are 29, not 28.9999

    def score(self, view: ImageView) -> Tensor:
        return (view["after"] - view["before"]).norm(dim=1)
