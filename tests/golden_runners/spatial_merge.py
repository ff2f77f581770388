"""Spatial merging: windows of like patches become one token each (MustDrop's rule, after the encoder).

Not a method of the package: it does not act at the paper's place, needs a grid of slots, and whole windows cannot meet
most budgets, so it could not stand in a comparison. It is here for the authors' golden.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor, nn

from vlmprune.author import (
    Act,
    AtLeast,
    ImageView,
    Merged,
    Method,
    ModelInfo,
    Need,
    Share,
    TowerFeatures,
    UserError,
    top_k,
)


@dataclass
class SpatialMerge(Method):
    """Windows of side x side neighbours that look alike become their mean.

    Paper: Multi-Stage Vision Token Dropping: Towards Efficient Multimodal Large Language Model (MustDrop, arXiv
    2411.10803), stage "vision". There the encoder goes on with the shorter sequence after its first layer; here the
    rule acts on the rows that the projector reads, which is not the paper's place and saves nothing in the encoder.

    Formula: rows [n, C] on a grid, cut into windows that do not overlap (what is left at the border stays). Likeness of
    a window: mean cosine of its ordered pairs, 72 for 3 x 3. The r most alike become the mean of their rows, most alike
    first, and all other tokens follow in raster order: n - r (side^2 - 1) tokens. Time O(n C), memory O(n C).

    Defaults: side 3; r is the smallest that meets the budget. Positions: re-numbered on LLaVA, elsewhere a merged token
    stands in the middle of its window.

    Args:
        side: of a window, in cells.
        threshold: with it there is no budget: every window at least this much alike is merged (the paper: 0.8).

    Differences from the authors' code: the place in the model, see above; in a batch each image merges as many windows
    as its own content says, not the smallest number of the batch.

    Raises:
        UserError: merging every window keeps more than the budget.
    """

    name: ClassVar[str] = "spatial-merge"
    stage: ClassVar[str] = "vision"
    summary: ClassVar[str] = "means of 3 x 3 windows of like patches (MustDrop's first stage, after the encoder)"
    merges: ClassVar[bool] = True

    side: Annotated[int, AtLeast(2)] = 3
    threshold: Annotated[float, Share] | None = None

    @property
    def budgeted(self) -> bool:
        return self.threshold is None

    @property
    def exact(self) -> bool:
        return False

    def needs(self, info: ModelInfo) -> dict[str, Need]:
        return {"rows": TowerFeatures()}

    def budget(self, act: Act, n: int, total: int) -> int:
        return super().budget(act, n, total) if self.budgeted else max(1, n - 1)

    def select(self, view: ImageView) -> Merged:
        rows, windows = view["rows"].rows, self.windows(view)
        if self.threshold is None:
            count = -(-(view.n - view.keep) // (self.side**2 - 1))
            if count > len(windows):
                least = view.n - len(windows) * (self.side**2 - 1)
                raise UserError(
                    f"spatial-merge: with all windows merged {least} of {view.n} tokens are left: give a budget "
                    f"of {least} or more."
                )
        else:
            count = int((likeness(rows[windows]) >= self.threshold).sum())
        return spatial_merge(rows, windows, count)

    def windows(self, view: ImageView) -> Tensor:
        """[w, side^2] tokens of each whole window whose cells are all present."""
        if view.grid is None:
            raise UserError("spatial-merge needs tokens that lie on a grid, which this image's do not.")
        grid, side = view.grid, self.side
        token = torch.full((grid.size,), -1, device=view.cells.device)
        shown = (view.cells >= 0).nonzero().squeeze(1)
        token[view.cells[shown]] = shown
        frames = token.view(grid.frames, grid.rows, grid.cols)
        cut = frames[:, : grid.rows // side * side, : grid.cols // side * side]
        if not cut.numel():
            return token.new_zeros(0, side * side)
        windows = cut.unfold(1, side, side).unfold(2, side, side).reshape(-1, side * side)
        return windows[(windows >= 0).all(1)]


def likeness(windows: Tensor) -> Tensor:
    """Mean cosine [w] of the ordered pairs in windows [w, m, C]."""
    unit = nn.functional.normalize(windows.float(), dim=-1)
    size = windows.shape[1]
    return ((unit.sum(1) ** 2).sum(-1) - (unit**2).sum((1, 2))) / (size * (size - 1))


def spatial_merge(rows: Tensor, windows: Tensor, count: int) -> Merged:
    """The `count` windows most alike merged, in that order, and the other tokens of `rows` [n, C] behind them.

    Args:
        windows: [w, m] tokens of each window.
    """
    chosen = windows[top_k(likeness(rows[windows]), count)]
    others = torch.ones(len(rows), dtype=torch.bool, device=rows.device)
    others[chosen.flatten()] = False
    rest = others.nonzero().squeeze(1)
    merged = torch.cat([rows[chosen].mean(1), rows[rest]])
    return Merged(merged, torch.cat([chosen[:, windows.shape[1] // 2], rest]), space="tower")
