"""EVS: the first frame, and then what changes from one frame to the next."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from vlmprune.author import Act, Features, ImageView, ModelInfo, Need, Scorer, resolve_keep

FIRST = 255.0  # above any change, so that the first frame comes first


@dataclass
class EVS(Scorer):
    """Keeps the first frame of a video, and of the others the tokens that change most from the frame before.

    Paper: Efficient Video Sampling: Pruning Temporally Redundant Tokens for Faster VLM Inference (arXiv 2510.14624).

    Formula: X [T, m, D] projected features of T frames of m tokens. Score of token i of frame t: 1 - cos(x_ti, x_t-1,i)
    with the token at the same place of the frame before, kept or not; 255 in the first frame. The budget is for the
    whole video, and never below m: a frame in which nothing moves may lose all its tokens. Time O(T m D), memory
    O(T m D).

    Defaults: none published but 0.3 for Nemotron Nano, which was trained with it. An image, with all its tiles, is one
    frame and stays whole, whatever the budget. Positions are those of the whole prompt on Qwen; renumbered on LLaVA
    (ours), where vLLM does not offer it.

    Args:
        score_dtype: "float32", "float16" or "bfloat16": precision of the cosines. vLLM's is the model's, in which all
            changes of a nearly static video tie.
        compat: "vllm" rounds a share of the tokens down.

    Differences from the authors' code:
        - The code is vLLM's, of NVIDIA. On Qwen3-VL it also compares the deepstack levels; here only what enters the
          LLM first is compared.
        - Text after a video goes on behind it; in vLLM's path for Qwen2.5-VL it may get smaller positions than the
          video.
        - A token whose place was dropped from the frame before by an earlier stage counts as 1, like a zero vector.
        - Slots without a patch (LLaVA-OneVision's newline, Video-LLaVA's CLS slots) are dropped first.
        - On InternVL and SmolVLM each frame of a video is an image, and stays whole.
    """

    name: ClassVar[str] = "evs"
    stage: ClassVar[str] = "vision"
    summary: ClassVar[str] = "for video: the first frame, and the tokens that change most from the frame before"
    budget_means: ClassVar[str] = "tokens of a video, at least a whole frame; images stay whole"

    score_dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    compat: Literal["paper", "vllm"] = "paper"
    per: Literal[None, "image"] = field(default=None, kw_only=True)  # one frame by itself never changes

    def needs(self, info: ModelInfo) -> dict[str, Need]:
        return {"features": Features()}

    def sees_every_slot(self, info: ModelInfo) -> bool:
        """Never: a newline is in no frame."""
        return False

    def budget(self, act: Act, n: int, total: int) -> int:
        if act.frames == 1:
            return n
        assert act.grid is not None  # `frames` has checked it
        down = self.compat == "vllm" and isinstance(act.keep, float)
        return max(int(n * act.keep) if down else resolve_keep(act.keep, n), act.grid.rows * act.grid.cols)

    def left(self, act: Act, n: int, total: int) -> int | None:
        """Unknown until there is a video: an image stays whole."""
        return self.budget(act, n, total) if act.video else None

    def score(self, view: ImageView) -> Tensor:
        rows = view["features"].to(getattr(torch, self.score_dtype))
        change = torch.full_like(rows[:, 0], FIRST)
        if view.act.frames == 1 or view.grid is None:
            return change.float()
        size, tokens = view.grid.rows * view.grid.cols, torch.arange(view.n, device=rows.device)
        at = torch.full((view.grid.size,), -1, device=rows.device)  # the token that shows each cell
        at[view.cells] = tokens
        later = tokens[view.cells // size > view.cells.min() // size]
        before = at[view.cells[later] - size]
        cosine = cosine_similarity(rows[later], rows[before], dim=1)
        change[later] = torch.where(before >= 0, 1 - cosine, 1)
        return change.float()
