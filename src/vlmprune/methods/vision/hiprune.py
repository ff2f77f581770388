"""HiPrune: anchors of a middle encoder layer and their neighbours, then registers of the output layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from vlmprune.author import (
    AtLeast, Depth, EncoderLayer, ImageView, ModelInfo, NamesParts, Need, ReceivedAttention, Share, USED, UserError,
    top_k,
)  # fmt: skip
from vlmprune.methods.blocks import with_neighbours


@dataclass
class HiPrune(NamesParts):
    """Hierarchical attention of the vision encoder: middle layers attend to objects, deep layers to the whole image.

    Paper: HiPrune: Training-Free Visual Token Pruning via Hierarchical Attention (arXiv 2508.00553).

    Formula: m, d [n] = attention each token receives at the object layer and at the layer that is projected.
    A = top round(keep * alpha / 5) of m; AB = A and the left, right, upper and lower neighbour of each on the slot
    grid (by index arithmetic: the end of a row neighbours the start of the next, and a place beyond the image counts
    as its first or last cell); R = top (keep - |AB|) of d outside AB; kept = AB and R. Time O(n log n), memory O(n).

    Defaults: alpha 0.1. The object layer is the 9th of 24 (CLIP), layer 8 counted from 0; the 16th of 32 (Qwen2.5-VL),
    layer 15; on other towers, the layer at the same share of the depth. LLaVA renumbers positions, Qwen2.5-VL keeps
    them. Each tile of LLaVA-NeXT is pruned by itself.

    Args:
        alpha: share of the budget that anchors and their neighbours should take, 0 to 1.
        object_layer: encoder layer (0-based, where the paper counts from 1) to read m from, instead of the default.
        compat: "official" takes registers by lowering AB's d by 1 instead of excluding AB, and refuses an AB that
            exceeds the budget.

    Differences from the authors' code:
        - R never contains tokens of AB. Theirs subtracts 1 from their scores; on Qwen2.5-VL, where scores are sums over
          queries and average 1, a strong token is then taken twice, and fewer than `keep` are left.
        - If AB exceeds the budget (alpha near 1), the neighbours found last are left out; theirs fails.
        - Tokens dropped by an earlier stage do not count as neighbours, and neither do tokens of another frame.
        - On LLaVA-NeXT, tiles cut by padding get budgets in proportion to what is left of them. Theirs keeps the
          padding, and divides one budget by the tiles of all images of a call.
    """

    name: ClassVar[str] = "hiprune"
    stage: ClassVar[str] = "vision"
    summary: ClassVar[str] = "attention received in a middle encoder layer (with neighbours) and in the output layer"

    alpha: Annotated[float, Share] = 0.1
    object_layer: Annotated[int, AtLeast(0)] | None = None
    compat: Literal["paper", "official"] = "paper"

    def needs(self, info: ModelInfo) -> dict[str, Need]:
        layer: EncoderLayer = Depth(9, 24) if info.has_cls else Depth(16, 32)
        if self.object_layer is not None:
            layer = self.object_layer
            if layer >= info.encoder_layers:
                last = info.encoder_layers - 1
                raise UserError(f"hiprune: object_layer={layer} must be one of the encoder's layers, 0 to {last}.")
        return {"object": ReceivedAttention(layer), "deep": ReceivedAttention(USED)}

    def pool(self, info: ModelInfo) -> str:
        return "frame" if info.llava else "image"

    def named(self, view: ImageView) -> dict[str, Tensor]:
        buffered, registers = self.parts(view)
        anchor = torch.isin(buffered, self.anchors(view))
        return {"anchors": buffered[anchor], "buffers": buffered[~anchor], "registers": registers}

    def anchors(self, view: ImageView) -> Tensor:
        """A by falling score."""
        return top_k(view.rated(view["object"]), round(view.keep * self.alpha / 5))

    def near(self, view: ImageView) -> list[int]:
        """AB, the anchors first."""
        return with_neighbours(self.anchors(view).tolist(), view)

    def parts(self, view: ImageView) -> tuple[Tensor, Tensor]:
        """AB in ascending order, and R by falling score: token indices, [|AB|] and [keep - |AB|]."""
        near = self.near(view)
        if not self.exact and len(near) > view.keep:
            found = f"{len(near)} anchors and neighbours"
            raise UserError(f"{self.name}: the authors' code fails on {found} in a budget of {view.keep}: lower alpha.")
        near = near[: view.keep]
        deep = view["deep"].float()
        buffered = torch.tensor(sorted(near), dtype=torch.long, device=deep.device)
        free = torch.ones(view.n, dtype=torch.bool, device=deep.device)
        if self.exact:
            free[buffered] = False
        else:
            # the authors' unit: sums over queries without a CLS token (which average 1), means with one
            deep = deep.clone() if view.info.has_cls else deep / deep.mean()
            deep[buffered] -= 1
        candidates = free.nonzero().squeeze(1)
        return buffered, candidates[top_k(deep[candidates], view.keep - len(near))]
