"""Average pooling: shrinks the grid of tokens to the budget; a baseline for methods that merge."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import nn

from vlmprune.author import Features, ImageView, Merged, Method, ModelInfo, Need


@dataclass
class Pool(Method):
    """Replaces rectangles of projected features by their means.

    Paper: the Pool-Pre baseline of UniPruneBench (arXiv 2511.02650).

    Formula: X [R, C, D] projected features of a frame or tile. The rows are cut into g = round(sqrt(keep R / C))
    strips; strip i covers rows floor(i R / g) to ceil((i + 1) R / g), so strips overlap by a row if g does not divide
    R. The budget is spread evenly over the strips, k_i tokens each, and the columns of a strip are cut in the same way.
    A token is the mean of its rectangle and takes the position of its middle. With keep = g x h this is adaptive
    average pooling to g x h; at other budgets some strips have one token more, so the budget is exact.
    Time O(n D), memory O(n D).

    Defaults: each frame or tile by itself. Positions are renumbered; on Qwen they are those of the rectangles' middles.

    Args:
        mode: "avg" or "max" (of each feature by itself).
        compat: "uniprune" pools to a square of isqrt(keep) tokens per side, whatever the picture's shape.

    Differences from the authors' code:
        - Any budget is possible, with the picture's own aspect ratio; UniPruneBench has 4, 16 and 25 tokens per tile.
        - The grid is the model's. Theirs guesses it from the number of tokens, and takes a portrait picture for a
          landscape; here the guess is used only if there is no grid.
        - After a stage that left holes in the grid, runs of consecutive tokens are pooled.
        - It works on Qwen, where theirs fails.
    """

    name: ClassVar[str] = "pool"
    stage: ClassVar[str] = "vision"
    summary: ClassVar[str] = "means of rectangles of features, as many as the budget"
    merges: ClassVar[bool] = True

    mode: Literal["avg", "max"] = "avg"
    compat: Literal["paper", "uniprune"] = "paper"
    per: Literal[None, "frame"] = field(default=None, kw_only=True)

    @property
    def exact(self) -> bool:
        return self.compat == "paper"

    def needs(self, info: ModelInfo) -> dict[str, Need]:
        return {"features": Features()}

    def positions(self, info: ModelInfo) -> str:
        return "original" if info.family.startswith("qwen") else "compact"

    def pool(self, info: ModelInfo) -> str:
        return "frame"

    def sees_every_slot(self, info: ModelInfo) -> bool:
        """Never: an image_newline does not lie in any rectangle of the picture."""
        return False

    def select(self, view: ImageView) -> Merged:
        rows, cols = shape(view)
        strips = self.strips(rows, cols, view.keep)
        shrink = nn.functional.adaptive_avg_pool2d if self.mode == "avg" else nn.functional.adaptive_max_pool2d
        grid = view["features"].float().view(rows, cols, -1).permute(2, 0, 1)
        features = []
        for i, count in enumerate(strips):
            top, bottom = _bin(i, rows, len(strips))
            features.append(shrink(grid[:, top:bottom], (1, count))[:, 0].T)
        anchors, members = (torch.tensor(of(rows, cols, strips)) for of in (middles, rectangles))
        return Merged(torch.cat(features), anchors.to(view.slots.device), members=members.to(view.slots.device))

    def strips(self, rows: int, cols: int, keep: int) -> list[int]:
        """Tokens in each strip of a rows x cols picture."""
        if self.compat == "uniprune":
            side = math.isqrt(keep)
            return [side] * side
        count = min(max(round(math.sqrt(keep * rows / cols)), -(-keep // cols)), rows, keep)
        return [keep * (i + 1) // count - keep * i // count for i in range(count)]


def middles(rows: int, cols: int, strips: list[int]) -> list[int]:
    """The token in the middle of each rectangle of a rows x cols picture, in raster order of the rectangles."""
    found = []
    for i, count in enumerate(strips):
        top, bottom = _bin(i, rows, len(strips))
        across = (_bin(j, cols, count) for j in range(count))
        found += [(top + bottom - 1) // 2 * cols + (left + right - 1) // 2 for left, right in across]
    return found


def rectangles(rows: int, cols: int, strips: list[int]) -> list[int]:
    """The number of the rectangle that each token lies in; of two that overlap, the first."""
    found = []
    for row in range(rows):
        strip = next(i for i in range(len(strips)) if row < _bin(i, rows, len(strips))[1])
        first, count = sum(strips[:strip]), strips[strip]
        found += [first + next(j for j in range(count) if col < _bin(j, cols, count)[1]) for col in range(cols)]
    return found


def _bin(i: int, size: int, count: int) -> tuple[int, int]:
    """The first cell of bin `i` of `count` bins along `size` cells, and the cell after its last."""
    return i * size // count, -(-(i + 1) * size // count)


def shape(view: ImageView) -> tuple[int, int]:
    """Rows and columns of the tokens present."""
    if view.grid is None:  # the most nearly square grid that is at least as wide as high
        rows = next(rows for rows in range(math.isqrt(view.n), 0, -1) if view.n % rows == 0)
        return rows, view.n // rows
    row, col = (torch.unique(part) for part in (view.cells // view.grid.cols, view.cells % view.grid.cols))
    whole = (row[:, None] * view.grid.cols + col).flatten()
    return (len(row), len(col)) if torch.equal(whole, view.cells) else (1, view.n)
