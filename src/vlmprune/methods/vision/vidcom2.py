"""VidCom2: tokens far from the video's and their frame's centre, and more of them in frames that stand out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from vlmprune.author import Act, Features, ImageView, Method, ModelInfo, Need, ascending, resolve_keep, top_k
from vlmprune.methods.frames import frames_of, share_out

BANDWIDTHS = (0.125, 0.25, 0.5, 1.0, 2.0)
TEMPERATURE = 0.01


@dataclass
class VidCom2(Method):
    """Keeps tokens that differ from the video's and their frame's centre, and more of them in frames that stand out.

    Paper: Video Compression Commander: Plug-and-Play Inference Acceleration for Video Large Language Models (EMNLP
    2025, arXiv 2505.14454).

    Formula: X [T m, D] projected features of T frames of m tokens. Of the D channels the int(D / 2) with the lowest
    variance over the video stay; u = their unit vectors. c = the mean of u over the video, c_t over frame t.
    g(u, c) = sum over a in 1/8, 1/4, 1/2, 1, 2 of exp(-|u - c|^2 / 2a); v = g(u, c), f = g(u, c_t), both [T m].
    Frame t has the weight 1 + p_t - 1/T, p = softmax over frames of (-mean v) / 0.01. The budget is divided among the
    frames by weight with the method of largest remainders, one token or more each; the tokens with the lowest v + f
    of each frame stay. Time O(T m D), memory O(T m D).

    Defaults: 0.25 of the tokens, 0.15 in tables; 32 frames on LLaVA-OneVision. Positions are renumbered on LLaVA, kept
    on Qwen. An image, with all its tiles, counts as one frame (ours). A budget of fewer tokens than frames leaves some
    frames without any.

    Args:
        score_dtype: "float32", "float16" or "bfloat16": precision of all arithmetic. The authors compute in the
            model's own, in which many scores tie.
        compat: "official" keeps max(1, round(m min(1, b (1 + p_t - 1/T)))) tokens of frame t, b = the share that the
            budget is, so the total varies. "vllm" then drops the tokens with the highest v + f, or adds those with the
            lowest, until max(T, int(b T m)) are kept.

    Differences from the authors' code:
        - The total is exact; theirs varies, and at shares above 0.5 some of the budget is lost.
        - Slots without a patch are dropped first: LLaVA-OneVision's newline, which theirs keeps beside the budget, and
          Video-LLaVA's CLS slots.
        - On Qwen3-VL the main embedding is scored, as in theirs; vLLM probably scores the deepstack levels too.
        - On InternVL and SmolVLM each frame of a video is an image with a budget of its own.
    """

    name: ClassVar[str] = "vidcom2"
    stage: ClassVar[str] = "vision"
    summary: ClassVar[str] = "for video: tokens unlike the rest of the video and of their frame, more in unusual frames"

    score_dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    compat: Literal["paper", "official", "vllm"] = "paper"

    def needs(self, info: ModelInfo) -> dict[str, Need]:
        return {"features": Features()}

    def sees_every_slot(self, info: ModelInfo) -> bool:
        """Never: a newline belongs to no frame."""
        return False

    def budget(self, act: Act, n: int, total: int) -> int:
        if self.compat == "vllm" and isinstance(act.keep, float):
            return max(act.frames, int(n * act.keep))
        return resolve_keep(act.keep, n)

    def likeness(self, features: Tensor, frames: list[Tensor]) -> tuple[Tensor, Tensor]:
        """How much tokens [n, D] are like the video's centre, v [n], and their frame's, f [n], in `score_dtype`."""
        rows = features.to(getattr(torch, self.score_dtype))
        variance = rows.var(0, unbiased=False)
        unit = normalize(rows[:, top_k(-variance, max(1, rows.shape[1] // 2))], dim=1, eps=1e-12)
        own = torch.empty(len(unit), dtype=unit.dtype, device=unit.device)
        for tokens in frames:
            own[tokens] = _kernel(unit[tokens], unit[tokens].mean(0))
        return _kernel(unit, unit.mean(0)), own

    def weights(self, likeness: Tensor, frames: list[Tensor]) -> Tensor:
        """1 + p_t - 1/T of each frame, [T], from v [n]."""
        unusual = -torch.stack([likeness[tokens].mean() for tokens in frames])
        share = ((unusual - unusual.max()) / TEMPERATURE).softmax(0)
        return 1 + share - share.mean()

    def select(self, view: ImageView) -> Tensor:
        frames = frames_of(view)
        video, own = self.likeness(view["features"], frames)
        score = view.rated(-(video + own))
        weights, sizes = self.weights(video, frames), [len(tokens) for tokens in frames]
        if self.compat == "paper":
            # a guaranteed token changes the shares, so it is given only where a frame would get none
            enough = view.keep * float(weights.min()) >= float(weights.sum())
            counts = share_out(view.keep, weights, sizes, least=0 if enough else 1)
        else:
            keep = view.act.keep
            scales = self.scales(weights, keep if isinstance(keep, float) else view.keep / view.n)
            counts = [min(m, max(1, round(float(scale * m)))) for scale, m in zip(scales, sizes, strict=True)]
        kept = ascending(torch.cat([frame[top_k(score[frame], m)] for frame, m in zip(frames, counts, strict=True)]))
        return _adjusted(kept, score, view.keep) if self.compat == "vllm" else kept

    @staticmethod
    def scales(weights: Tensor, share: float) -> Tensor:
        """The share of each frame that the authors keep, [T]."""
        return (share * weights).nan_to_num(share).clamp(max=1.0)


def _kernel(unit: Tensor, centre: Tensor) -> Tensor:
    """How much rows [n, C] are like a centre [C], summed over the bandwidths: [n]."""
    distance = (unit - centre).square().sum(1)
    return torch.stack([(-distance / (2 * width)).exp() for width in BANDWIDTHS]).sum(0)


def _adjusted(kept: Tensor, score: Tensor, keep: int) -> Tensor:
    """`keep` tokens: of those that were kept the best, or all and the best of the others; in increasing order."""
    others = torch.ones_like(score, dtype=torch.bool)
    others[kept] = False
    rest = others.nonzero().squeeze(1)
    more = rest[top_k(score[rest], max(0, keep - len(kept)))]
    return ascending(torch.cat([kept[top_k(score[kept], keep)], more]))
