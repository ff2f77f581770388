"""HoloV: a budget for each crop of the image, so that the kept tokens show all of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor, nn

from vlmprune.author import (
    AtLeast, ClsAttention, Features, ImageView, Merged, Method, ModelInfo, Need, NotNegative, Selection, ascending,
    top_k,
)  # fmt: skip
from vlmprune.methods.blocks import blocks, fill, runs
from vlmprune.methods.members import owned

SCALE, EPS = 1000.0, 1e-6


@dataclass
class HoloV(Method):
    """Crops share the budget by how much the CLS token attends to them and how varied they are.

    Paper: Don't Just Chase "Highlighted Tokens" in MLLMs: Revisiting Visual Holistic Context Retention (NeurIPS 2025,
    arXiv 2510.02912).

    Formula: a [n] attention of the CLS token. In a crop of m tokens with features x_i, u_i = x_i / |x_i|, S = U U^T
    [m, m] with a zero diagonal, v_i = sum_j (S_ij - mean_i)^2 / (m - 1), mean_i = sum_j S_ij / (m - 1). Score of a
    token: 1000 a_i + alpha v'_i, where v' is v scaled to the mean of 1000 a. The weight of a crop is the mean of its
    scores; it gets floor(weight * keep) tokens, and the rest goes in order of weight to crops with room. The best
    tokens of each crop stay. Time O(n m D), memory m^2 numbers.

    Defaults: alpha 0.09, 16 crops (4 x 4) per frame or tile, 64 tokens on LLaVA-1.5, positions renumbered. Qwen2.5-VL:
    int(16/9 * n / keep) crops, positions kept. The attention is that of the layer that is projected; on a tower
    without a CLS token it is the mean over all queries.

    Args:
        crops: crops per frame, laid out as squarely as their number and the grid allow; None: as above.
        alpha: weight of the variance, from 0.
        compat: "official" cuts the token sequence into `crops` runs, keeps a run's tokens by attention only, in order
            of attention, and fills a budget that exceeds its run with tokens of zeros.

    Differences from the authors' code:
        - Crops are blocks of the grid, and tokens are kept by the score, as in the paper; theirs takes runs of rows,
          and the attention (for the size of a crop's budget the variance cancels out in both).
        - Tokens for which a crop has no room go to other crops; theirs feeds zeros to the LLM.
        - A crop of one token weighs 1000 a like any other; theirs leaves out the factor 1000.
        - On Qwen2.5-VL theirs starts a token early and pairs scores in window order with features in raster order.
    """

    name: ClassVar[str] = "holov"
    stage: ClassVar[str] = "vision"
    summary: ClassVar[str] = "the best tokens of each crop, whose budget is set by attention and variety"

    crops: Annotated[int, AtLeast(1)] | None = None
    alpha: Annotated[float, NotNegative] = 0.09
    compat: Literal["paper", "official"] = "paper"

    def needs(self, info: ModelInfo) -> dict[str, Need]:
        return {"features": Features(), "attention": ClsAttention()}

    @property
    def merges(self) -> bool:
        return self.compat == "official"

    def select(self, view: ImageView) -> Selection:
        picks = self.picks(view)
        if self.compat == "paper":
            return ascending(picks)
        zeros = view.keep - len(picks)
        features = nn.functional.pad(view["features"][picks], (0, 0, 0, zeros))
        return Merged(features, nn.functional.pad(picks, (0, zeros), value=-1), members=owned(view.n, picks))

    def picks(self, view: ImageView) -> Tensor:
        """Token indices crop by crop, the best first; fewer than `keep` only with compat="official"."""
        official = self.compat == "official"
        attention = view.rated(view["attention"].float())
        crops = self.parts(view)
        scores = [self.score(view["features"][crop].float(), attention[crop]) for crop in crops]
        weights = torch.stack([score.mean() for score in scores]).nan_to_num()
        weights = weights / (weights.sum() + EPS)
        order, counts = top_k(weights, len(crops)).tolist(), (weights * view.keep).floor().long().tolist()
        if official:
            for crop in order[: view.keep - sum(counts)]:
                counts[crop] += 1
        else:
            counts = fill(counts, [len(crop) for crop in crops], view.keep, order)
        ranks = [attention[crop] for crop in crops] if official else scores
        # a crop that is kept whole keeps its order
        return torch.cat(
            [crop if n >= len(crop) else crop[top_k(rank, n)] for crop, rank, n in zip(crops, ranks, counts)]
        )

    def parts(self, view: ImageView) -> list[Tensor]:
        """Token indices of each crop."""
        by_budget = max(1, int(1.7778 * view.n / view.keep)) if view.info.family.startswith("qwen") else 16
        count = self.crops or by_budget
        if self.compat == "official":
            return [run for run in runs(view, count) if len(run)]
        ratio = view.grid.rows / view.grid.cols if view.grid else 1.0
        shapes = [(rows, count // rows) for rows in range(1, count + 1) if count % rows == 0]
        return blocks(view, *min(shapes, key=lambda shape: abs(math.log(shape[0] / shape[1] / ratio))))

    def score(self, features: Tensor, attention: Tensor) -> Tensor:
        """Scores of one crop's tokens, [m], from their features [m, D] and attention [m]."""
        m = len(features)
        if m == 1 and self.compat == "official":
            return attention
        unit = features / (features.norm(dim=1, keepdim=True) + EPS)
        alike = (unit @ unit.T).fill_diagonal_(0)
        others = max(1, m - 1)
        mean = alike.sum(1, keepdim=True) / others
        variance = (alike - mean).square().sum(1) / others
        scaled = SCALE * attention
        return scaled + self.alpha * variance * (scaled.abs().mean() / (variance.abs().mean() + EPS))
