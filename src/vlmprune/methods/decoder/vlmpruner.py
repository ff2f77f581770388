"""VLM-Pruner: from a few pivots outwards, tokens unlike those chosen, near ones first; the rest is merged into them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor, nn

from vlmprune.author import (
    AtLeast, DecoderKeys, DecoderMethod, HiddenStates, ImageView, Merged, ModelInfo, Need, Positive, top_k,
)  # fmt: skip
from vlmprune.methods.farthest import farthest_first
from vlmprune.methods.outward import Outward, reinjected

CHANNELS = 256  # that vary most, of which tokens are compared


@dataclass
class VLMPruner(DecoderMethod):
    """Chooses tokens from near to far that repeat nothing chosen before, and merges the others into these.

    Paper: VLM-Pruner: Buffering for Spatial Sparsity in an Efficient VLM Centrifugal Token Pruning Paradigm (CVPR 2026,
    arXiv 2512.02700).

    Formula: k [n, C], h [n, D] = rotated keys (KV heads side by side) and output of decoder layer K-1; s_ij = cosine of
    h_i and h_j over the 256 channels that vary most; d_ij = distance on the grid, as a share of its diagonal. Pivots:
    the largest |k|_1, then those farthest from all pivots in k. Redundancy of c beside the chosen S: r(c) = (1 + min_S
    d_cs / 2) max_S s_cs. In rounds t = threshold, threshold + 0.1, ...: the others by rising r, `batch` at a time, of
    which those with r < t (against S as it is by then) join S, up to `keep`. Each dropped x then goes to the chosen s
    with the largest s_xs: h_s becomes 0.3 h_s + 0.7 times the mean of its x, weighted by s_xs, if these weights add up
    to more than 0. Time O(n^2 + rounds n), memory O(n^2).

    Defaults: K = 2, 4 pivots, threshold 0.8, batches of 16; 192, 128 or 64 tokens of LLaVA-1.5. Positions are kept.
    Ours, on all families but LLaVA-1.5 and Qwen2-VL: each tile or frame by itself; tokens without a place on the grid
    go first.

    Args:
        layer: K, the decoder layer (0-based) before which it acts.
        pivots: how many tokens the search begins with; fewer if the budget is smaller.
        threshold: of the first round.
        batch: how many tokens are compared with the threshold at once.
        compat: "official" ends the search where two batches or a round add nothing, even below the budget, keeps all
            pivots even above it, may take a pivot twice, and on Qwen folds the tokens at twice the grid's width.

    Differences from the authors' code:
        - Below the budget, the least redundant token is added until it is met. Theirs then keeps fewer, as few as the
          pivots: early layers have channels in which all tokens are alike.
        - Tokens lie where the picture shows them. Theirs takes Qwen's grid before patches are merged.
        - All is computed in float32. The grid is the image's; theirs takes 24 columns for any image of LLaVA.
    """

    name: ClassVar[str] = "vlmpruner"
    summary: ClassVar[str] = "from a few pivots outwards, tokens that repeat nothing chosen; the rest is merged"
    merges: ClassVar[bool] = True

    pivots: Annotated[int, AtLeast(1)] = 4
    threshold: Annotated[float, Positive] = 0.8
    batch: Annotated[int, AtLeast(1)] = 16
    compat: Literal["paper", "official"] = "paper"

    def needs(self, info: ModelInfo) -> dict[str, Need]:
        return {"keys": DecoderKeys(), "states": HiddenStates()}

    def pool(self, info: ModelInfo) -> str:
        return "frame"

    def sees_every_slot(self, info: ModelInfo) -> bool:
        return False  # a newline has no place on the grid

    def select(self, view: ImageView) -> Merged:
        states, likeness = view["states"].visual.float(), self.likeness(view)
        chosen = self.order(view, likeness)
        kept = torch.unique(chosen)
        features, new, members = reinjected(states, likeness, chosen, kept)
        return Merged(features, kept, unchanged=~new, members=members)

    def likeness(self, view: ImageView) -> Tensor:
        """s [n, n]."""
        states = view["states"].visual.float()
        channels = top_k(states.var(0), CHANNELS)
        unit = torch.nan_to_num(nn.functional.normalize(states[:, channels], dim=1))
        return unit @ unit.T

    def order(self, view: ImageView, likeness: Tensor) -> Tensor:
        """The chosen tokens in the order in which they are chosen."""
        official, keys = self.compat == "official", view["keys"].visual.float()
        count = self.pivots if official else min(self.pivots, view.keep)
        first = top_k(keys.norm(p=1, dim=1), 1)
        search = Outward(likeness, self.distance(view), farthest_first(keys, first, count, again=official), view.keep)
        search.rounds(self.threshold, self.batch)
        if not official:
            search.fill()
        return search.chosen

    def fold(self, view: ImageView) -> tuple[int, float]:
        """Columns of the grid, and its diagonal."""
        assert view.grid is not None
        twice = 2 if self.compat == "official" and view.info.family.startswith("qwen") else 1
        return twice * view.grid.cols, twice * math.hypot(view.grid.rows, view.grid.cols)

    def distance(self, view: ImageView) -> Tensor:
        """d [n, n]; zeros without a grid."""
        if view.grid is None:
            return view["states"].visual.new_zeros(view.n, view.n)
        cells = view.cells % (view.grid.rows * view.grid.cols)
        cols, diagonal = self.fold(view)
        places = torch.stack([cells // cols, cells % cols], dim=1).float()
        return torch.cdist(places, places, compute_mode="donot_use_mm_for_euclid_dist") / diagonal
