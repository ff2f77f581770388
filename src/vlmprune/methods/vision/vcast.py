"""V-CAST: more tokens where the video turns, and of each frame those far from its mean or long."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from vlmprune.author import (
    Act, AtLeast, Features, ImageView, Method, ModelInfo, Need, Positive, ascending, resolve_keep, top_k,
)  # fmt: skip
from vlmprune.methods.frames import frames_of, share_out

EPS = 1e-6


@dataclass
class VCast(Method):
    """Frames get tokens by how sharply the video turns there; of a frame, tokens far from its mean or long stay.

    Paper: V-CAST: Video Curvature-Aware Spatio-Temporal Pruning for Efficient Video Large Language Models (arXiv
    2603.27650).

    Formula: X [T, m, D] projected features of T frames of m tokens; u_t = the mean of frame t, at length 1.
    Curvature c_t = 1 - cos(u_t - u_t-1, u_t+1 - u_t), and 1 at both ends. Each frame gets `floor` tokens; the rest of
    the budget is divided by w = softmax(c / temperature), with the method of largest remainders. Score of a token:
    1 - cos(x, u_t) + (|x| - min |x|) / (max |x| - min |x|), minimum and maximum of its frame; the highest of each frame
    stay. Time O(T m D), memory O(T m D).

    Defaults: 0.25 of the tokens on Qwen3-VL (64 frames), 1 token per frame, temperature 0.7. Positions are kept.
    Other families are ours: LLaVA (positions renumbered), and an image, with all its tiles, as one frame, of which the
    best tokens stay. A budget of fewer than T `floor` tokens is divided by weight alone.

    Args:
        floor: tokens that every frame gets.
        temperature: of the softmax; higher spreads the budget more evenly.
        score_dtype: "float32", "float16" or "bfloat16": precision of means and cosines. The authors' is the model's.
        compat: "official" gives all that rounding down cut off to the frame with the largest fraction and, once this
            is full, to the next; raises a budget below T `floor`; and keeps an image, or a video of one frame, whole.

    Differences from the authors' code:
        - What rounding down cut off goes round, as its comments say and the code does not (see `compat`).
        - The budget holds for images and tiny budgets too (see `compat`).
        - Slots without a patch (LLaVA-OneVision's newline, Video-LLaVA's CLS slots) are dropped first.
        - Batches of several samples work, where theirs prunes nothing.
        - On InternVL and SmolVLM each frame of a video is an image with a budget of its own.
    """

    name: ClassVar[str] = "vcast"
    stage: ClassVar[str] = "vision"
    summary: ClassVar[str] = "for video: more tokens in frames where it turns; of each those that stand out"

    floor: Annotated[int, AtLeast(0)] = 1
    temperature: Annotated[float, Positive] = 0.7
    score_dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    compat: Literal["paper", "official"] = "paper"

    @property
    def exact(self) -> bool:
        """Always: the authors' code raises the budget, and then meets it."""
        return True

    def needs(self, info: ModelInfo) -> dict[str, Need]:
        return {"features": Features()}

    def sees_every_slot(self, info: ModelInfo) -> bool:
        """Never: a newline belongs to no frame."""
        return False

    def budget(self, act: Act, n: int, total: int) -> int:
        if self.compat == "paper":
            return resolve_keep(act.keep, n)
        return n if act.frames == 1 else max(resolve_keep(act.keep, n), act.frames * self.floor)

    def centres(self, features: Tensor, frames: list[Tensor]) -> Tensor:
        """The mean of each frame's tokens at length 1, [T, D] in `score_dtype`."""
        rows = features.to(getattr(torch, self.score_dtype))
        means = torch.stack([rows[tokens].mean(0) for tokens in frames])
        return means / means.norm(dim=1, keepdim=True).clamp(min=EPS)

    def curvature(self, centres: Tensor) -> Tensor:
        """How sharply the video turns at each frame, [T] from 0 to 2."""
        steps = centres.diff(dim=0)
        turns = 1 - cosine_similarity(steps[:-1], steps[1:], dim=1, eps=EPS)
        ends = turns.new_ones(1)
        return torch.cat([ends, turns, ends])[: len(centres)]

    def weights(self, centres: Tensor) -> Tensor:
        """The share of the budget that each frame gets, [T]."""
        return (self.curvature(centres).float() / self.temperature).softmax(0)

    def scores(self, features: Tensor, centre: Tensor) -> Tensor:
        """Scores of one frame's tokens [m], from their features [m, D] and its centre [D]."""
        far = 1 - cosine_similarity(features.to(centre), centre[None], dim=1, eps=EPS).float()
        length = features.float().norm(dim=1)
        return far + (length - length.min()) / (length.max() - length.min() + EPS)

    def select(self, view: ImageView) -> Tensor:
        features, frames = view["features"], frames_of(view)
        centres, sizes = self.centres(features, frames), [len(tokens) for tokens in frames]
        counts = share_out(view.keep, self.weights(centres), sizes, self.floor, spread=self.compat == "paper")
        kept = [
            tokens[top_k(self.scores(features[tokens], centre), m)]
            for tokens, centre, m in zip(frames, centres, counts, strict=True)
        ]
        return ascending(torch.cat(kept))
