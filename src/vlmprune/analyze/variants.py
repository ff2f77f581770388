"""HiPrune with those parts exchanged that its table 5 exchanges. It is not a method of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from vlmprune.author import ClsAttention, ImageView, ModelInfo, Need, top_k
from vlmprune.methods.blocks import with_neighbours
from vlmprune.methods.vision.hiprune import HiPrune


@dataclass
class HiPruneVariant(HiPrune):
    """HiPrune whose attention or neighbourhood is another one.

    Args:
        attention: "received" from all tokens, or that which the CLS token pays ("cls").
        neighbours: buffers of an anchor: 4 (cross), 2 (row), 8 (square) or 0; alpha is the share of both together.
    """

    name: ClassVar[str] = "hiprune-variant"

    attention: Literal["received", "cls"] = "received"
    neighbours: Literal[0, 2, 4, 8] = 4

    def needs(self, info: ModelInfo) -> dict[str, Need]:
        found = super().needs(info)
        if self.attention == "received":
            return found
        return {name: ClsAttention(need.layer) for name, need in found.items()}  # type: ignore[attr-defined]

    def anchors(self, view: ImageView) -> Tensor:
        return top_k(view["object"], round(view.keep * self.alpha / (1 + self.neighbours)))

    def near(self, view: ImageView) -> list[int]:
        return with_neighbours(self.anchors(view).tolist(), view, self.neighbours)
