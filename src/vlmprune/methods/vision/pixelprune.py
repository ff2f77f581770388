"""PixelPrune: tokens whose pixels the neighbours on the left and above do not predict."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from vlmprune.author import ImageView, ModelInfo, Need, NotNegative, Pixels, ascending, top_k
from vlmprune.methods.outliers import CountsItself


@dataclass
class PixelPrune(CountsItself):
    """Keeps the tokens whose pixels cannot be told from their neighbours', as an image format would store them.

    Paper: PixelPrune: Pixel-Level Adaptive Visual Token Reduction via Predictive Coding (arXiv 2604.00886).

    Formula: X [R, C, P] the pixels of the R x C tokens of a frame or tile. Of a token with left, upper and upper left
    neighbours A, B, C, the prediction is B if C is like A and not like B (a vertical edge), and otherwise A; in the
    first row it is A, in the first column B. Error e = max |x - prediction|; two are alike if max |difference| <=
    `threshold`. A token with e <= `threshold` takes the pixels of its prediction where it predicts others. The tokens
    with the highest e stay; one without a neighbour comes first. Time O(n P), memory O(n P).

    Defaults: it takes a budget; the paper keeps all with e > `threshold` (`adaptive`), which on pages and screens is 50
    to 77 % of the tokens. With `threshold` 0 only exact copies are dropped. Each frame or tile by itself (ours).
    Positions are those of the whole picture on Qwen, and renumbered on LLaVA (ours).

    Args:
        threshold: in units of the pixels as the encoder gets them, after the processor's normalisation.
        adaptive: keep as many tokens as have an error above the threshold, and all slots that show no patch (newlines);
            then it takes no budget.

    Differences from the authors' code:
        - Theirs drops tokens before the encoder of Qwen3-VL and Qwen3.5; here the encoder sees the whole picture, so
          that only the language model is spared, and tokens that stay know of those that go.
        - The budget is ours.
        - Besides the maximum, theirs offers the mean and the root mean square of the differences.
        - On LLaVA's towers (CLIP, SigLIP) every patch is compared; theirs compares the 2 x 2 patches of Qwen's tokens.
    """

    name: ClassVar[str] = "pixelprune"
    stage: ClassVar[str] = "vision"
    summary: ClassVar[str] = "tokens whose pixels are not predicted by their neighbours; exact copies are dropped"

    threshold: Annotated[float, NotNegative] = 0.0

    def needs(self, info: ModelInfo) -> dict[str, Need]:
        return {"pixels": Pixels(normalized=True)}

    def sees_every_slot(self, info: ModelInfo) -> bool:
        """Where nothing may be lost, slots without a patch stay, too."""
        return self.adaptive

    def select(self, view: ImageView) -> Tensor:
        errors = self.errors(view)
        count = int((errors > self.threshold).sum()) if self.adaptive else view.keep
        return ascending(top_k(errors, count))

    def errors(self, view: ImageView) -> Tensor:
        """How far the pixels of each token are from what its neighbours predict, [n]; infinite where none does."""
        pixels, shown = view["pixels"], view.cells >= 0
        errors = pixels.new_full((view.n,), torch.inf)
        if view.grid is None or not bool(shown.any()):
            return errors
        rows, cols, frames = view.grid
        cells = view.cells[shown]
        grid = pixels.new_full((view.grid.size, pixels.shape[1]), torch.nan)  # not a number: like nothing
        grid[cells] = pixels[shown]
        found = prediction_errors(grid.view(frames, rows, cols, -1), self.threshold).flatten()
        errors[shown] = found[cells].nan_to_num(nan=torch.inf)
        return errors


def prediction_errors(grid: Tensor, threshold: float) -> Tensor:
    """Prediction errors [F, R, C] of the cells of F frames with pixels [F, R, C, P]; NaN where no neighbour is.

    A cell depends on those before it in its row and column, so the cells are visited diagonal by diagonal.
    """
    frames, rows, cols, _ = grid.shape
    errors = grid.new_full((frames, rows, cols), torch.nan)
    stored = torch.nn.functional.pad(grid, (0, 0, 1, 0, 1, 0), value=torch.nan)  # a row and a column before the first
    for diagonal in range(rows + cols - 1):
        row = torch.arange(max(0, diagonal - cols + 1), min(diagonal, rows - 1) + 1, device=grid.device)
        col = diagonal - row
        left, above, corner = stored[:, row + 1, col], stored[:, row, col + 1], stored[:, row, col]
        vertical = (_distance(corner, left) <= threshold) & ~(_distance(corner, above) <= threshold)
        upper = vertical | left.isnan().all(-1)
        prediction = torch.where(upper[..., None], above, left)
        error = _distance(grid[:, row, col], prediction)
        errors[:, row, col] = error
        told = (error <= threshold)[..., None]
        stored[:, row + 1, col + 1] = torch.where(told, prediction, grid[:, row, col])
    return errors


def _distance(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).abs().amax(-1)
