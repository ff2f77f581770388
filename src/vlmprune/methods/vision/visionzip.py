"""VisionZip: keeps dominant tokens as they are, and merges the rest into a few contextual tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from vlmprune.author import (
    AtLeast, ClsAttention, EncoderKeys, ImageView, Merged, ModelInfo, Need, OrdersParts, Share, TowerFeatures,
    TowerRows, ascending, top_k,
)  # fmt: skip
from vlmprune.methods.contextual import Clusters, clusters, contextual_count, contextual_tokens, members_of
from vlmprune.methods.tiles import whole_tile


@dataclass
class VisionZip(OrdersParts):
    """Keeps the tokens that the CLS token attends to, and merges the rest.

    Paper: VisionZip: Longer is Better but Not Necessary in Vision Language Models (CVPR 2025, arXiv 2412.04467).

    Formula: each frame or tile by itself. Rows x [N, C], N = n + 1 with a CLS token. Dominant: CLS and the top
    (D - 1) of the CLS token's attention.
    Of the M rows left, every (M // C)-th is a target; every other row joins the target with the most similar key
    (cosine of keys averaged over heads). A contextual token is its target plus the mean of its members. Order: CLS,
    dominant by position, contextual. LLaVA-NeXT: first those of the whole image in this order, then the dominant tokens
    of all tiles by place on the canvas, the tiles' CLS tokens, their contextual tokens. Without a CLS token: D by
    received attention, all in order of position. Time O(n C d), memory O(n C), d the width of a key.

    Defaults: D + C = 162 + 30, 108 + 20 or 54 + 10 on LLaVA-1.5: 10 of 64 are contextual; positions renumbered.
    Qwen2.5-VL (ports): projected tokens are merged, and the positions are those of D and of the targets.

    Args:
        contextual: C as a share of the budget (float) or a number of tokens (int); at least one token stays dominant.

    Differences from the authors' code:
        - C follows the budget. With 1 to 3 tokens it is 0, and the rest is dropped.
        - A zero key is similar to nothing; theirs yields NaN.
        - On LLaVA-NeXT tiles cut by padding get budgets in proportion to what is left; theirs keeps the padding.
    """

    name: ClassVar[str] = "visionzip"
    stage: ClassVar[str] = "vision"
    summary: ClassVar[str] = "tokens that the CLS token attends to; the rest is merged into contextual tokens"
    merges: ClassVar[bool] = True

    contextual: Annotated[float, Share] | Annotated[int, AtLeast(0)] = 10 / 64
    per: Literal[None, "frame"] = field(default=None, kw_only=True)  # each frame or tile has a CLS token of its own

    def needs(self, info: ModelInfo) -> dict[str, Need]:
        return {"rows": TowerFeatures(), "attention": ClsAttention(), "keys": EncoderKeys()}

    def pool(self, info: ModelInfo) -> str:
        return "frame"

    def contextual_of(self, keep: int) -> int:
        """C, for a budget of `keep` tokens."""
        return contextual_count(self.contextual, keep)

    def clusters(self, view: ImageView) -> Clusters:
        """Which rows of the tower are kept, targets, and merged; row 0 is the CLS token if there is one.

        Dominant: CLS first, then by falling attention.
        """
        keys = _all_rows(view["keys"])
        cls = keys.shape[0] - view.n  # 1 with a CLS token, 0 without
        count = self.contextual_of(view.keep)
        dominant = top_k(view.rated(view["attention"]), view.keep - count - cls) + cls
        return clusters(keys, torch.cat([dominant.new_zeros(cls), dominant]), count)

    def select(self, view: ImageView) -> Merged:
        rows, parts = _all_rows(view["rows"]), self.clusters(view)
        dominant = ascending(parts.dominant)
        features = torch.cat([rows[dominant], contextual_tokens(rows, parts)])
        cls = rows.shape[0] - view.n
        anchors, members = torch.cat([dominant, parts.targets]) - cls, members_of(parts, rows.shape[0])[cls:]
        made = Merged(features, anchors, space="tower", members=members)
        return made if cls else made.ordered(anchors.argsort())

    def reading_order(self, view: ImageView, parts: Mapping[int, Tensor]) -> Tensor | None:
        if whole_tile(view) != 0 or not view.info.has_cls:
            return None
        kinds = []
        for tile, anchors in parts.items():
            kind = torch.full_like(anchors, 1 if tile else 0)  # 0 the whole image's, 1 dominant, 2 CLS, 3 contextual
            if tile:
                kind[0] = 2
                kind[len(anchors) - self.contextual_of(len(anchors)) :] = 3
            kinds.append(kind)
        kind, anchor = torch.cat(kinds), torch.cat(list(parts.values()))
        place = torch.where(kind == 1, anchor, torch.arange(len(anchor), device=anchor.device))
        return (kind * view.n + place).argsort()


def _all_rows(values: TowerRows) -> Tensor:
    """[N, C] float32, with the CLS token's row first if there is one."""
    rows = values.rows.float()
    return rows if values.cls is None else torch.cat([values.cls.float(), rows])
