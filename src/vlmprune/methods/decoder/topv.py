"""TopV (a reconstruction): tokens that contribute most to the layer's output, by optimal transport."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor, nn

from vlmprune.author import (
    AtLeast, DecoderMethod, Grid, ImageView, LayerInput, MlpInput, ModelInfo, Need, NotNegative, Positive, Share,
    ascending, top_k,
)  # fmt: skip


@dataclass
class TopV(DecoderMethod):
    """Pruning as optimal transport from a layer's input tokens to the input of its MLP, without attention scores.

    A reconstruction: there is no public code, and the full text was not available. Stated by the authors (abstract,
    figures and a public reading note): the layer, source and target tokens, the three terms of the cost (L2 distance,
    a Gaussian of the distance in the picture, distance to the centre), Sinkhorn's algorithm with 3 iterations, uniform
    recovery of some pruned tokens. Ours: all weights, widths and scales, and the ranking.

    Paper: TopV: Compatible Token Pruning with Inference Time Optimization for Fast and Low-Memory Multimodal Vision
    Language Model (CVPR 2025, arXiv 2503.18278).

    Formula: x, y [n, D] = the image's tokens as they enter decoder layer K-1 and as its MLP reads them; p = their
    places in the grid divided by its diagonal, with the frame divided by the number of frames as a third axis.
    F_ij = |x_i - y_j| divided by its mean, S_ij = 1 - exp(-|p_i - p_j|^2 / (2 width^2)), Z_i = distance to the frame's
    centre divided by the largest; C = F + near * S + central * Z. Transport P [n, n] from source i to target j: every
    target takes 1/n, by softmax_i(-C / eps). score_i = sum_j P_ij. Of the `keep` tokens round(recover * keep) are
    spread evenly, in raster order, over those without a top score. Time O(n^2 D), memory O(n^2).

    Defaults: K = 3 (after layer 2's computation) on every family; positions are kept.

    Args:
        layer: K, the decoder layer (0-based) before which it acts.
        feature: F: "l2" as above, or "cosine": 1 - cos(x_i, y_j).
        spatial: S: "gaussian" as above, or "plain": |p_i - p_j|.
        near: weight of S.
        width: radius of the Gaussian, in diagonals.
        central: weight of Z; small, because Z alone would crop the border.
        eps: of Sinkhorn's algorithm: the smaller it is, the nearer each target comes to a single source.
        score: "contribution" as above, where sources may have any mass (with equal masses all sums would be equal).
            "sharpness": mass 1/n on both sides, ranked by max_j P_ij.
        iterations: of Sinkhorn's algorithm for "sharpness"; "contribution" is solved in half of one.
        recover: share of `keep` that is spread evenly over tokens that would otherwise go.

    Differences from the authors' code: not known.
    """

    name: ClassVar[str] = "topv"
    summary: ClassVar[str] = "tokens that contribute most to the layer's output, by optimal transport (reconstruction)"

    layer: int = 3
    feature: Literal["l2", "cosine"] = "l2"
    spatial: Literal["gaussian", "plain"] = "gaussian"
    near: Annotated[float, NotNegative] = 0.5
    width: Annotated[float, Positive] = 0.25
    central: Annotated[float, NotNegative] = 0.1
    eps: Annotated[float, Positive] = 0.05
    score: Literal["contribution", "sharpness"] = "contribution"
    iterations: Annotated[int, AtLeast(1)] = 3
    recover: Annotated[float, Share] = 0.2

    def needs(self, info: ModelInfo) -> dict[str, Need]:
        return {"source": LayerInput(), "target": MlpInput()}

    def sees_every_slot(self, info: ModelInfo) -> bool:
        """A slot without a place in the picture has no cost."""
        return False

    def select(self, view: ImageView) -> Tensor:
        spread = round(self.recover * view.keep)
        kept = top_k(self.scores(view), view.keep - spread)
        rest = torch.isin(torch.arange(view.n, device=kept.device), kept, invert=True).nonzero().squeeze(1)
        step = len(rest) // max(1, spread)
        recovered = rest[step // 2 :: step][:spread] if spread else rest[:0]
        return ascending(torch.cat([kept, recovered]))

    def scores(self, view: ImageView) -> Tensor:
        """Rank of each token, [n]."""
        logits = -self.cost(view) / self.eps
        if self.score == "contribution":
            return torch.softmax(logits, dim=0).mean(1)
        for _ in range(self.iterations):
            logits = logits - logits.logsumexp(1, keepdim=True)
            logits = logits - logits.logsumexp(0, keepdim=True)
        return logits.amax(1)

    def cost(self, view: ImageView) -> Tensor:
        """C [n, n], source by target."""
        source, target = view["source"].float(), view["target"].float()
        if self.feature == "l2":
            unlike = torch.cdist(source, target)
            unlike = unlike / unlike.mean().clamp(min=1e-12)
        else:
            unlike = 1 - nn.functional.normalize(source, dim=-1) @ nn.functional.normalize(target, dim=-1).T
        places, off_centre = where(view)
        apart = torch.cdist(places, places)
        if self.spatial == "gaussian":
            apart = 1 - (-(apart**2) / (2 * self.width**2)).exp()
        return unlike + self.near * apart + self.central * off_centre[:, None]


def where(view: ImageView) -> tuple[Tensor, Tensor]:
    """Places [n, 3] of the tokens, and their distance from the centre of their frame [n], 0 to 1."""
    grid = view.grid or Grid(1, view.total)
    cells = view.cells.float()
    inside = cells % (grid.rows * grid.cols)
    row, col = inside // grid.cols, inside % grid.cols
    frame = (cells // (grid.rows * grid.cols)) / grid.frames
    high, wide = grid.rows - 1, grid.cols - 1
    diagonal = max(1.0, (high**2 + wide**2) ** 0.5)
    centre = ((row - high / 2) ** 2 + (col - wide / 2) ** 2).sqrt() / (diagonal / 2)
    return torch.stack([row / diagonal, col / diagonal, frame], dim=1), centre
