"""CLSE: attention of the last prompt token, where a decoder layer changed the picture's fine structure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from vlmprune.author import (
    At, ImageView, Keep, LastQueryAttention, LayerInput, LayerOutput, ModelInfo, Need, NotNegative, Positive, Scorer,
)  # fmt: skip
from vlmprune.methods.decoder.staged import Staged
from vlmprune.methods.spectrum import high_pass, raster

# For budgets of 1, 2 and 3 ninths of the tokens, what each act leaves: of 576 tokens, and on Qwen as shares.
COUNTS = {1: (110, 70, 20), 2: (220, 140, 41), 3: (330, 210, 62)}
QWEN = {1: (0.19, 0.12, 0.034), 2: (0.38, 0.24, 0.066), 3: (0.57, 0.36, 0.098)}
OTHER = (1.72, 1.09, 0.32)  # times any other budget
LAYERS = {28: (1, 10, 19), 32: (1, 11, 21), 36: (1, 13, 24)}  # by depth


@dataclass
class CLSE(Scorer, Staged):
    """Last-token attention at three depths; at the first it is gated by how much the spectrum changed in one layer.

    Paper: CLSE (ECCV 2026, arXiv 2606.24165).

    Formula: x, y [h, w, D] = the image's tokens in its grid, as decoder layer K-1 was given and as it returned them;
    S_x [n] = mean over channels of |inverse FFT of (1 - exp(-r^2 / 2 s^2)) FFT(x)|, r the distance of a frequency from
    zero, s = cutoff min(h // 2, w // 2); e = min(1, |S_y - S_x| / (mean(S_x) + S_x + 1e-6)); f = sigmoid(z / temp) with
    z = (e - mean(e)) / (std(e) + 1e-6). Score [n] = f a at the first act and a at later ones, a [n] = the last prompt
    token's softmax row at layer K-1, mean over heads. The top tokens stay, in image order. Frames have an FFT each, and
    the means are over all of them. Time O(D n log n), memory O(D n).

    Defaults: before layers 1, 11, 21 of 32; 1, 10, 19 of 28; 1, 13, 24 of 36; 1, 0.36 and 0.67 of another depth. For
    budgets of 3, 2 and 1 ninths 330, 210, 62 of 576 tokens are left; 220, 140, 41; 110, 70, 20; on Qwen 57, 36, 9.8 %;
    38, 24, 6.6; 19, 12, 3.4. For any other 1.72, 1.09 and 0.32 times the budget. The budget is nominal: 192 of 576
    tokens mean that 208 enter a layer on average. Video-LLaVA has one cut, before layer 3, which leaves the budget.
    Positions are kept.

    Args:
        layers: decoder layers (0-based) before which it acts, at most three. With one, it leaves the budget.
        cutoff: width s of the filter, as a share of the highest frequency; 0 takes the mean away and nothing else.
        temp: the smaller, the nearer f comes to 0 and 1.
        fft: "2d", for each frame, or "3d", for all frames together, with s = cutoff (min(t, h, w) // 2).
        kv_prune: whether the caches of all layers before the last act are cut to what it kept, as in the authors' code,
            so that decoding sees no others.

    Differences from the authors' code:
        - On LLaVA-NeXT, whose tiles lose their padding, and where tokens of a grid are missing, the score is attention
          alone, as in theirs for several images; here each image has its grid. Tokens without a patch have f = 0.5.
        - A grid of one row works; theirs divides by zero. At least one token is left.
        - Only one row of attention is computed; theirs runs these layers with full maps.
        - The authors' code has LLaVA-1.5, Qwen2-VL, Qwen3-VL and Video-LLaVA. Ours: tiles are frames, three cuts on
          videos elsewhere, and a budget of all tokens cuts nothing.
    """

    name: ClassVar[str] = "clse"
    summary: ClassVar[str] = "at several layers, attention of the last prompt token, first where the spectrum changed"
    budget_means: ClassVar[str] = "about an average over layers"
    trims_first_layers: ClassVar[bool] = True

    cutoff: Annotated[float, NotNegative] = 0.1
    temp: Annotated[float, Positive] = 0.1
    fft: Literal["2d", "3d"] = "2d"
    kv_prune: bool = True

    def needs(self, info: ModelInfo) -> dict[str, Need]:
        attention: dict[str, Need] = {"attention": LastQueryAttention()}
        unpadded = info.family == "llava_next"  # so that tiles are not whole
        return attention if unpadded else {**attention, "before": LayerInput(), "after": LayerOutput()}

    def acts(self, info: ModelInfo, keep: Keep) -> Sequence[int | At | None]:
        first, *later = self.schedule(info)
        super().acts(info, keep)  # raises its error where there is no schedule
        return [first, *(At(layer, {"attention": LastQueryAttention()}) for layer in later)]

    def usual_layers(self, info: ModelInfo) -> tuple[tuple[int, ...], int]:
        depth = info.decoder_layers
        layers = LAYERS.get(depth, (1, max(1, round(0.36 * depth)), max(1, round(0.67 * depth))))
        return (3,) if info.family == "video_llava" else layers, depth

    def shares(self, share: float, layers: Sequence[int], info: ModelInfo) -> Sequence[float]:
        if len(layers) == 1 or share == 1:
            return (share,) * min(3, len(layers))
        ninths = round(9 * share)
        if ninths not in COUNTS or abs(ninths / 9 - share) > 0.001:  # the authors write 0.334, 0.223 and 0.112
            return [min(1.0, factor * share) for factor in OTHER]
        return QWEN[ninths] if "qwen" in info.family else [count / 576 for count in COUNTS[ninths]]

    def score(self, view: ImageView) -> Tensor:
        return view["attention"] if view.act.number else self.gate(view) * view["attention"]

    def gate(self, view: ImageView) -> Tensor:
        """f [n]; ones without a whole grid."""
        found = raster(view) if "before" in view.signals else None
        if found is None:
            return torch.ones_like(view["attention"])
        grid, at, shown = found
        gate = torch.full_like(view["attention"], 0.5)
        before, after = (high_pass(view[name][shown], grid, at, self.cutoff, self.fft) for name in ("before", "after"))
        gate[shown] = torch.sigmoid(standard(change(before, after)) / self.temp)
        return gate


def change(before: Tensor, after: Tensor) -> Tensor:
    """e [n]."""
    return ((after - before).abs() / (before.mean() + before + 1e-6)).clamp(max=1.0)


def standard(values: Tensor) -> Tensor:
    """z [n]; zeros for a single value."""
    return (values - values.mean()) / (values.std().nan_to_num() + 1e-6)
