"""The base of methods with Prune-Aware Fusion: options of the edit, and a plan of what is kept and what is fused."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from vlmprune.author import Fusing, Fusion, ImageView, Method, ModelInfo, NotNegative, SelectsTogether, Share

HIGHER_TAU = ("qwen2_vl", "qwen2_5_vl")  # 0.1 there, 0.05 on Qwen3-VL and LLaVA


@dataclass(kw_only=True)
class PruneAwareFusion(Fusing, SelectsTogether):
    """Base of these methods. A subclass says where it acts, and in `plans` what is kept and which are candidates.

    Args:
        lambda_: strength of the edit; 0 turns fusion off.
        tau: share of a query's attention that a candidate must exceed; by default the paper's for this family, or 0.05
            (as on LLaVA and Qwen3-VL) on families that the paper does not have.
        top_share: share of an image's candidates that may be raised for one query.
        threshold_over: "row": tau is a share of all attention of the query; "candidates": of that to candidates.
        positive_only: leave negative logits alone, which the formula would lower.
    """

    stage: ClassVar[str] = "decoder"

    lambda_: Annotated[float, NotNegative] = 0.3
    tau: Annotated[float, Share] | None = None
    top_share: Annotated[float, Share] = 0.1
    threshold_over: Literal["row", "candidates"] = "row"
    positive_only: bool = False

    def fusion(self, info: ModelInfo) -> Fusion | None:
        tau = self.tau if self.tau is not None else 0.1 if info.family in HIGHER_TAU else 0.05
        if self.lambda_ == 0 or self.top_share == 0 or tau >= 1:  # then no logit changes
            return None
        return Fusion(self.lambda_, tau, self.top_share, self.threshold_over, self.positive_only)

    def unfused(self) -> Method:
        return replace(self, lambda_=0) if self.lambda_ else self

    @abstractmethod
    def plans(self, views: Sequence[ImageView]) -> list[tuple[Tensor, Tensor]]:
        """Of each view, indices of the `view.keep` tokens that are kept, and those of the candidates.

        Args:
            views: as of `select_together`.
        """

    def select_together(self, views: Sequence[ImageView]) -> list[Tensor]:
        return [kept for kept, _ in self._planned(views)]

    def candidates(self, view: ImageView) -> Tensor:
        return self.candidates_together([view])[0]

    def candidates_together(self, views: Sequence[ImageView]) -> list[Tensor]:
        return [candidates for _, candidates in self._planned(views)]

    def _planned(self, views: Sequence[ImageView]) -> list[tuple[Tensor, Tensor]]:
        """The plans, each made once for the same tokens: two layers and the cut ask for it."""
        plans = {place: plan for place, view in enumerate(views) if (plan := _noted(view)) is not None}
        missing = [place for place in range(len(views)) if place not in plans]
        if missing:
            plans.update(zip(missing, self.plans([views[place] for place in missing]), strict=True))
        for place in missing:
            views[place].memory.setdefault("plans", []).append((views[place].slots, views[place].keep, plans[place]))
        return [plans[place] for place in range(len(views))]


def _noted(view: ImageView) -> tuple[Tensor, Tensor] | None:
    """The plan that was made for these tokens before."""
    for slots, keep, plan in view.memory.get("plans", []):
        if keep == view.keep and torch.equal(slots, view.slots):
            return plan
    return None


def remember_order(view: ImageView, order: Tensor) -> None:
    """Note for later acts the order in which this act ranks the tokens that it keeps."""
    ranks = view.memory.setdefault("ranks", torch.full((view.total,), -1, device=view.slots.device))
    ranks[view.slots[order]] = torch.arange(len(order), device=ranks.device)


def earlier_order(view: ImageView) -> Tensor | None:
    """The tokens in the order that an earlier act noted; None if it did not note all of them."""
    ranks = view.memory["ranks"][view.slots] if "ranks" in view.memory else -torch.ones_like(view.slots)
    return torch.argsort(ranks) if bool((ranks >= 0).all()) else None
