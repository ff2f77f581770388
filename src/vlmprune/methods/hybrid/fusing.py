"""What methods share that fuse: candidates chosen together with what is kept, and the options of the edit."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from vlmprune.author import Fusing, Fusion, ImageView, Method, ModelInfo
from vlmprune.methods.checks import one_of, positive, share, true_or_false

ROW, CANDIDATES = "row", "candidates"
HIGHER_TAU = ("qwen2_vl", "qwen2_5_vl")  # 0.1 there, 0.05 on Qwen3-VL and LLaVA


@dataclass(kw_only=True)
class PruneAwareFusion(Fusing):
    """Base of these methods. A subclass says where it acts, and in `plan` what is kept and what is fused first.

    Args:
        lambda_: strength of the edit; 0 turns fusion off.
        tau: share of a query's attention that a candidate must hold; by default the paper's for this family, and that
            of LLaVA and Qwen3-VL (0.05) on families without one.
        top_share: share of an image's candidates that may be raised for one query.
        threshold_over: "row": tau is a share of all attention of the query; "candidates": of that over candidates.
        positive_only: leave negative logits alone, which the formula lowers.
    """

    stage: ClassVar[str] = "decoder"

    lambda_: float = 0.3
    tau: float | None = None
    top_share: float = 0.1
    threshold_over: str = ROW
    positive_only: bool = False

    def __post_init__(self) -> None:
        positive(self, "lambda_", or_zero=True)
        if self.tau is not None:
            share(self, "tau")
        share(self, "top_share")
        one_of(self, "threshold_over", ROW, CANDIDATES)
        true_or_false(self, "positive_only")

    def fusion(self, info: ModelInfo) -> Fusion | None:
        tau = self.tau if self.tau is not None else 0.1 if info.family in HIGHER_TAU else 0.05
        if self.lambda_ == 0 or self.top_share == 0 or tau >= 1:  # then no logit changes
            return None
        return Fusion(self.lambda_, tau, self.top_share, self.threshold_over, self.positive_only)

    def unfused(self) -> Method:
        return replace(self, lambda_=0) if self.lambda_ else self

    @abstractmethod
    def plan(self, view: ImageView) -> tuple[Tensor, Tensor]:
        """Indices that are kept, `view.keep` of them, and those of the candidates."""

    def select(self, view: ImageView) -> Tensor:
        return self._planned(view)[0]

    def candidates(self, view: ImageView) -> Tensor:
        return self._planned(view)[1]

    def _planned(self, view: ImageView) -> tuple[Tensor, Tensor]:
        """The plan, which two layers and the cut ask for, made once for the same tokens."""
        plans = view.memory.setdefault("plans", [])
        for slots, keep, plan in plans:
            if keep == view.keep and torch.equal(slots, view.slots):
                return plan
        plans.append((view.slots, view.keep, self.plan(view)))
        return plans[-1][2]
