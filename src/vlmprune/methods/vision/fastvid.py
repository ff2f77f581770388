"""FastVID: segments of similar frames, salient tokens of each frame, and centres that take up the rest of a segment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from vlmprune.author import (
    Act, AtLeast, ClsAttention, Features, ImageView, Merged, Method, ModelInfo, Need, Share, ascending, resolve_keep,
)  # fmt: skip
from vlmprune.methods.centres import kept_of, nearest, taken_up
from vlmprune.methods.members import owned
from vlmprune.methods.frames import frames_of
from vlmprune.methods.segments import Segment, segments, shared_exactly, shared_onevision, shared_qwen

SAME = 0.95  # similarity from which on the authors' code for Qwen2.5-VL takes two frames for one


@dataclass
class FastVID(Method):
    """Of each segment of similar frames salient tokens stay, and centres take up the rest.

    Paper: FastVID: Dynamic Density Pruning for Fast Video Large Language Models (NeurIPS 2025, arXiv 2503.11187).

    Formula: X [T, m, D] projected features of T frames, a [T, m] attention, g_t = the mean of frame t. The video is cut
    after frame t for the `segments` - 1 lowest cos(g_t, g_t+1), and for all below tau. A segment of L frames gets L/T
    of the budget, B: int(`context` B) centres, spread over its last frame and every `stride`-th before it, and in all
    its frames evenly, the tokens with the highest a. Of the other tokens of these frames the centres are those with the
    highest rho delta: rho = exp(-mean of d^2 to the 4 nearest), delta = d to the nearest of higher rho, d = |x - x'| /
    sqrt(D). In each frame with centres every other token of the segment that is not salient joins the one with the
    highest cosine. With c > 0 tokens it becomes w x + (1 - w) mean, w = max(1 / (c + 1), beta). Time O(T m^2 D), memory
    O(m^2).

    Defaults: 0.1 of the tokens on LLaVA-OneVision (32 frames) with tau 0.9; 0.27 on Qwen2.5-VL with 0.84. Positions are
    kept. Ours: a is the CLS token's attention, or else that received, at the layer that is projected; an image, with
    its tiles, is one frame.

    Args:
        segments: how many segments there are at least, if there are as many frames.
        tau: similarity below which the video is always cut; None: as above.
        context: the share of centres.
        stride: frames from one that has centres to the next.
        beta: the least weight of a centre in what it becomes.
        compat: "onevision" or "qwen": how the authors' code for these models (not for LLaVA-Video, which is as above)
            divides int(m keep) T tokens, some of which are lost.

    Differences from the authors' code:
        - On LLaVA theirs loads SigLIP's pooling head, which the models lack, for a and g. On Qwen2.5-VL theirs takes a
          from the mean query of a frame and keys averaged over 2 x 2 patches.
        - The budget is exact, and centres without room in their frame are salient tokens; there theirs fails, and if
          there are fewer frames than `segments`.
        - Equally dense tokens are told apart by their index; theirs adds noise without a seed.
        - LLaVA-OneVision's newline is dropped first; theirs keeps it.
    """

    name: ClassVar[str] = "fastvid"
    stage: ClassVar[str] = "vision"
    summary: ClassVar[str] = "for video: salient tokens of similar frames, and centres that take up the others"
    merges: ClassVar[bool] = True

    segments: Annotated[int, AtLeast(1)] = 8
    tau: Annotated[float, Share] | None = None
    context: Annotated[float, Share] = 0.4
    stride: Annotated[int, AtLeast(1)] = 4
    beta: Annotated[float, Share] = 0.6
    compat: Literal["paper", "onevision", "qwen"] = "paper"

    @property
    def exact(self) -> bool:
        return self.compat == "paper"

    def needs(self, info: ModelInfo) -> dict[str, Need]:
        return {"features": Features(), "attention": ClsAttention()}

    def positions(self, info: ModelInfo) -> str:
        return "original"

    def budget(self, act: Act, n: int, total: int) -> int:
        if self.exact or isinstance(act.keep, int):
            return resolve_keep(act.keep, n)
        return max(1, int(n // act.frames * act.keep)) * act.frames

    def plan(self, centres: Tensor, sizes: Sequence[int], keep: int, info: ModelInfo) -> list[Segment]:
        """The segments of a video, from the centre [T, D] and the number of tokens of each frame."""
        similarity = cosine_similarity(centres[:-1].float(), centres[1:].float(), dim=1)
        tau = (0.84 if info.family.startswith("qwen") else 0.9) if self.tau is None else self.tau
        parts, each = segments(similarity, self.segments, tau), keep // len(sizes)
        if self.compat == "onevision":
            return [shared_onevision(part, each, self.context, self.stride) for part in parts]
        if self.compat == "qwen":
            ends = [[k for k in range(len(part)) if k + 1 == len(part) or similarity[part[k]] < SAME] for part in parts]
            return [shared_qwen(part, sizes[0], each, self.context, self.stride, own) for part, own in zip(parts, ends)]
        upto = [0, *torch.tensor(sizes).cumsum(0).tolist()]
        cuts = [keep * upto[end] // upto[-1] for end in (0, *(part.stop for part in parts))]
        return [
            shared_exactly(part, sizes[part.start : part.stop], after - before, self.context, self.stride)
            for part, before, after in zip(parts, cuts[:-1], cuts[1:], strict=True)
        ]

    def select(self, view: ImageView) -> Merged:
        rows, frames = view["features"].float(), frames_of(view)
        centres, sizes = torch.stack([rows[tokens].mean(0) for tokens in frames]), [len(tokens) for tokens in frames]
        return self.merged(rows, view["attention"], frames, self.plan(centres, sizes, view.keep, view.info))

    def merged(
        self, rows: Tensor, attention: Tensor, frames: Sequence[Tensor], plan: Sequence[Segment],
        noise: Mapping[int, Tensor] | None = None,
    ) -> Merged:  # fmt: skip
        """The kept tokens by position, from features [n, D] and attention [n]; `noise` by frame, see `kept_of`."""
        parts = [kept_of(part, frames, rows, attention, noise) for part in plan]
        chosen = ascending(torch.cat([tokens for part in parts for tokens in part.kept]))
        out, members = rows.clone(), owned(len(rows), chosen)
        for part in parts:
            for centres, pool in part.pools(joined=self.compat == "onevision"):
                joined = nearest(rows[centres], rows[pool])
                out[centres] = taken_up(rows[centres], rows[pool], joined, self.beta)
                # centres of several frames may take up the same tokens: the first of them is told
                members[pool] = torch.where(members[pool] < 0, members[centres[joined]], members[pool])
        return Merged(out[chosen], chosen, members=members)
