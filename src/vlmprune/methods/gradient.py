"""Gradient-weighted attention of the CLS token in the last layer of CLIP's vision tower (Grad-CAM)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vlmprune.author import (
    Attention, EncoderLayer, EncoderNeed, EncoderReading, Load, Need, PromptNeed, PromptReading, TowerRows,
)  # fmt: skip

LAST = -1


def weighted_attention(rows: Tensor, gradient: Tensor) -> Tensor:
    """[n] mean over heads of max(0, G A), A the attention of CLS and G the gradient of CLIP's cosine by A.

    Args:
        rows: [n, W + H] those of `CLIP_GRADIENT`.
        gradient: [n or 1, W] for the frame of each token.
    """
    width = gradient.shape[1]
    values, paid = rows[:, :width], rows[:, width:]
    by_attention = (values * gradient).unflatten(1, (paid.shape[1], -1)).sum(2)
    return (by_attention * paid).clamp(min=0).mean(1).nan_to_num()


def _collect(call: Attention) -> Tensor:
    """[B, tokens, W + H] each token's values and the attention CLS pays it; for CLS what it collects, and zeros."""
    paid = (call.query[:, :, :1].float() @ call.key.float().mT * call.scaling).softmax(-1)  # [B, H, 1, tokens]
    values = call.value.float()
    rows = torch.cat([values.transpose(1, 2).flatten(2), paid[:, :, 0].mT], dim=2)
    rows[:, 0] = 0
    rows[:, 0, : -paid.shape[1]] = (paid @ values).flatten(1)
    return rows


@dataclass(frozen=True)
class _Collected(EncoderNeed):
    """What CLS reads in the last layer: rows [n, W + H], values and attention paid to them, heads side by side.

    cls [frames, W + H + D]: what it collects of them [W], H zeros, and its own state as it enters the layer [D].
    """

    words: ClassVar[str] = "what the CLS token collects"
    cost_words: ClassVar[str] = "a row per head, O(H N d)"
    taps: ClassVar[tuple[str, ...]] = ("attention", "states")

    layer: EncoderLayer = LAST

    @property
    def layers(self) -> tuple[EncoderLayer, ...]:
        return (self.layer, self.layer - 1) if isinstance(self.layer, int) else (self.layer,)

    def read(self, at: EncoderReading) -> TowerRows:
        found, before = at.statistic(self.layer, _collect), at.states(self.layers[1]).cls
        if found.cls is None or before is None:  # behind a pixel shuffle
            return TowerRows(found.rows, None)
        return TowerRows(found.rows, torch.cat([found.cls, before.float()], dim=1))

    def flops(self, load: Load) -> float:
        return 4.0 * load.shape.encoder_width * load.encoder_tokens


@dataclass(frozen=True)
class _ClipGradient(PromptNeed):
    """What CLS reads in the last layer [n, W + H]; as cls [frames, W] the gradient of CLIP's cosine by what it gets.

    None without a text tower.
    """

    words: ClassVar[str] = "the gradient of CLIP's cosine by attention"
    cost_words: ClassVar[str] = "one token forwards and backwards through the rest of a layer"
    compares_text: ClassVar[bool] = True
    of_patches: ClassVar[bool] = True

    @property
    def encoder(self) -> tuple[EncoderNeed, ...]:
        return (_Collected(),)

    def take(self, value: TowerRows | None, tokens: Tensor, frame: int | None = None) -> TowerRows | None:
        return None if value is None else super().take(value, tokens, frame)

    def read(self, at: PromptReading) -> TowerRows | None:
        rows, cls = at.encoder(*self.encoder)
        if cls is None:
            return None
        width = cls.shape[1] - rows.shape[1]
        gradient = at.clip_gradient(cls[:, :width], cls[:, -width:])
        return None if gradient is None else TowerRows(rows, gradient)

    def flops(self, load: Load) -> float:
        width, inner = load.shape.encoder_width, load.shape.encoder_mlp
        return 3 * 2.0 * (width**2 + 2 * width * inner)


CLIP_GRADIENT: Need = _ClipGradient()
