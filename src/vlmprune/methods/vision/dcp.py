"""DCP (a reconstruction): tokens that the question's gradient points at, and those that the CLS token attends to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from torch import Tensor

from vlmprune.author import Alignment, ClsAttention, ImageView, ModelInfo, Need, Scorer, Share
from vlmprune.methods.gradient import LAST, NEEDS, weighted_attention
from vlmprune.methods.relevance import mean_cosine, sign_of


@dataclass
class DCP(Scorer):
    """Gradient-weighted attention of the CLS token for the question, beside its plain attention: two cues, one score.

    A reconstruction: there is no public code, and only the abstract was available. Stated by the authors: both cues are
    known before the LLM runs, a text-aware one of gradient-weighted attention and an image-aware one of self-attention
    in a deep layer of the vision encoder; the most informative tokens by both are kept. Ours: all else.

    Paper: Dual-Cue Pruning (EMNLP 2025, https://aclanthology.org/2025.emnlp-main.1074).

    Formula: A_h [n] = softmax row of the CLS token in the last layer of CLIP's vision tower, head h; G_h [n] =
    d cos(image, question) / d A_h, both as CLIP embeds them. text [n] = mean over heads of max(0, G_h A_h), image [n] =
    mean over heads of A_h; score [n] = balance text / sum(text) + (1 - balance) image / sum(image). The top `keep`
    stay, in image order. Time O(n W + W D), memory O(n W), with W the width of all heads and D that of the tower.

    Defaults: equal weight of both cues, on LLaVA-1.5 a quarter of the tokens. Without CLIP's text tower text [n] is the
    mean cosine of the projected features with the LLM's embeddings of the instruction, where that is above 0.
    Positions: renumbered on LLaVA, kept elsewhere.

    Args:
        balance: weight of the cue by text, 0 to 1.

    Ours, where the sources say nothing or can be read in two ways:
        - The layer of both cues is the last one. There only the CLS row of the attention reaches CLIP's image
          embedding, so the gradient runs back through the rest of that layer and no further.
        - The gradient is Grad-CAM's on attention maps: times the map, without what is negative, mean over heads.
        - Each cue is scaled to sum to 1; the question is what follows the image, in pieces of 77 tokens, of whose
          cosines the mean is taken; tiles and frames have an image embedding each, and all their tokens compete.
        - Towers without a CLS token have the received attention as image; they and families other than LLaVA have no
          gradient, and with a text tower the cosine of CLIP's patches, which point away from text that fits.

    Differences from the authors' code: not known.
    """

    name: ClassVar[str] = "dcp"
    stage: ClassVar[str] = "vision"
    summary: ClassVar[str] = "tokens of CLIP's gradient for the question and of CLS attention (reconstruction)"

    balance: Annotated[float, Share] = 0.5

    def needs(self, info: ModelInfo) -> dict[str, Need]:
        needs: dict[str, Need] = {"image": ClsAttention(LAST), "aligned": Alignment()}
        return {**needs, **NEEDS} if info.has_cls and info.llava else needs  # where the tower may be CLIP's

    def score(self, view: ImageView) -> Tensor:
        image = view["image"].float().nan_to_num()
        return self.balance * _share(self.text(view)) + (1 - self.balance) * _share(image)

    def text(self, view: ImageView) -> Tensor:
        """The cue by text, [n], not scaled."""
        gradient = view.signals.get("gradient")
        if gradient is None:
            return (sign_of(None, view["aligned"]) * mean_cosine(view["aligned"])).clamp(min=0)
        own = gradient if len(gradient) == 1 else gradient[view.frames]
        return weighted_attention(view["collected"].rows, own)


def _share(cue: Tensor) -> Tensor:
    return cue / cue.sum().clamp(min=1e-12)
