"""VTW: drops the whole image before one decoder layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from vlmprune.author import Act, At, AtLeast, ImageView, Keep, Method, ModelInfo, UserError
from vlmprune.core.method import layer_within


@dataclass
class VTW(Method):
    """Visual tokens withdrawal: drops all of the image's tokens before decoder layer K, and none earlier.

    Paper: Boosting Multimodal Large Language Models with Visual Tokens Withdrawal for Rapid Inference (AAAI 2025,
    arXiv 2405.05803).

    Formula: layers 0..K-1 see every token, the layers from K on see only the text. The search for K compares P, the
    softmax of the last prompt token's logits, with Q_l, the same when the image is dropped before layer l: K = the
    first l with mean over samples of sum Q_l (ln Q_l - ln P) <= eta (`vlmprune.fit.withdrawal.find_layer`).
    Time O(1), memory O(1).

    Defaults: `keep` is the share of layers that see the image, which is also the average share of tokens that enter a
    layer: K = round(keep * depth), at least 1. `vtw@16` names K and takes no budget. The authors take 15 or 16 of 32
    layers on LLaVA-1.5-7B, 20 of 40 on 13B. Positions are kept: the text keeps its own.

    Args:
        layer: K, the decoder layer (0-based) before which it acts, instead of a budget.

    Differences from the authors' code:
        - The image is found in the prompt; theirs is always columns 35 to 610. Several images and padding work.
        - Their mode that drops random tokens, which may be text tokens, is not offered.
        - If no layer qualifies, the search returns the depth and warns; theirs raises IndexError.
    """

    name: ClassVar[str] = "vtw"
    stage: ClassVar[str] = "decoder"
    summary: ClassVar[str] = "the whole image until decoder layer K, before which all of it is dropped"
    budget_means: ClassVar[str] = "the share of layers that see the image"
    least: ClassVar[int] = 0

    layer: Annotated[int, AtLeast(1)] | None = None

    @property
    def budgeted(self) -> bool:
        return self.layer is None

    def acts(self, info: ModelInfo, keep: Keep) -> Sequence[int | At | None]:
        if self.layer is not None:
            return super().acts(info, keep)
        if not isinstance(keep, float):
            raise UserError(
                f"vtw takes a share of the decoder layers, not a number of tokens: give 0.5, say, instead of {keep}."
            )
        layer = max(1, round(keep * info.decoder_layers))
        return () if layer >= info.decoder_layers else (layer,)

    def decoder_layer(self, info: ModelInfo) -> int | None:
        """The layer, or None if the budget decides it."""
        return None if self.layer is None else layer_within(self.name, self.layer, info)

    def budget(self, act: Act, n: int, total: int) -> int:
        return 0

    def select(self, view: ImageView) -> Tensor:
        return torch.empty(0, dtype=torch.long, device=view.slots.device)


def divergence(full: Tensor, withdrawn: Tensor) -> Tensor:
    """KL(Q || P) of each layer, mean over samples: [layers], for logits P [n, V] and Q [n, layers, V]."""
    p, q = full.float().log_softmax(-1)[:, None], withdrawn.float().log_softmax(-1)
    return (q.exp() * (q - p)).sum(-1).mean(0)


def first_within(divergences: Tensor, eta: float, first: int) -> int | None:
    """The first of layers `first`, `first` + 1, ... whose divergence is at most `eta`; None if there is none."""
    within = (divergences <= eta).nonzero().flatten().tolist()
    return first + within[0] if within else None
