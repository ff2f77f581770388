"""CDPruner: the subset that is most diverse given the question, as the likeliest sample of a DPP."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from vlmprune.author import Alignment, Features, ImageView, ModelInfo, Need, SelectsTogether, ShareBelowOne, ascending
from vlmprune.methods.blocks import fill
from vlmprune.methods.diversity import unit_rows
from vlmprune.methods.relevance import mean_cosine, sign_of
from vlmprune.methods.volume import largest_volume_of_each

PORTS_THETA = 0.5


@dataclass
class CDPruner(SelectsTogether):
    """Diversity weighted by relevance: tokens that are unlike each other and relevant to the question.

    Paper: Beyond Attention or Similarity: Maximizing Conditional Diversity for Token Pruning in MLLMs (NeurIPS 2025,
    arXiv 2506.10967).

    Formula: X [n, D] projected features, u_i = x_i / |x_i|; E [n, C] rows of the tower in CLIP's common space, T [M, C]
    the question in that space, cut into pieces of 77 tokens. c [n] = mean over T of -cos(e_i, t), r = (c - min c +
    1e-6) / (max c - min c). L_ij = r_i (u_i u_j) r_j. Greedy: d = diag(L); pick argmax d; with q the part of the pick
    that is orthogonal to all earlier picks, subtract from each d_i the squared component of v_i = r_i u_i along q.
    Time O(n keep D + keep^2 D), memory O(n D).

    Defaults: 128, 64 or 32 tokens on LLaVA-1.5, or per tile on LLaVA-NeXT: on LLaVA each tile or frame picks by
    itself, with min and max of c over the whole image; positions renumbered. Elsewhere, and without a text tower, as
    in OpenVINO's port: all tokens of an image compete, E are the projected features, T the LLM's embeddings of the
    instruction's tokens, c = +cos, and theta 0.5.

    Args:
        theta: from 0 (diversity only) to below 1: r becomes exp(r theta / (2 - 2 theta)), the paper's weighting. None
            turns this off with CLIP's text tower, as in the authors' code, and means 0.5 without.
        relevance_sign: 1 or -1; by default the authors' -1 with CLIP's text tower, and 1 without.
        score_dtype: "float32", "float16" or "bfloat16": precision of U. The authors use the model's own.
        per: "image" lets tiles compete; "frame" also takes min and max of c in each tile by itself.

    Differences from the authors' code:
        - If the kernel's rank is used up (duplicates, few dimensions), the most relevant of the rest fill the budget.
          Theirs yields NaN and keeps fewer tokens.
        - The same picks are found without the kernel: n x D numbers instead of n x n, in float32 as theirs, and in
          float64 where that is too coarse.
        - LLaVA-NeXT's tiles lose their padding, as in the model; theirs feeds all of every tile. Tiles share the budget
          in proportion to their tokens.
    """

    name: ClassVar[str] = "cdpruner"
    stage: ClassVar[str] = "vision"
    summary: ClassVar[str] = "the most diverse tokens given their relevance to the question: greedy MAP of a DPP"

    theta: Annotated[float, ShareBelowOne] | None = None
    relevance_sign: Literal[None, 1, -1] = None
    score_dtype: Literal["float32", "float16", "bfloat16"] = "float32"

    def needs(self, info: ModelInfo) -> dict[str, Need]:
        return {"features": Features(), "aligned": Alignment()}

    def select_together(self, views: Sequence[ImageView]) -> list[Tensor]:
        return [ascending(torch.cat(picks)) for picks in self.picks_of_each(views)]

    def picks(self, view: ImageView) -> list[Tensor]:
        """For each tile that picks by itself, its token indices in the order in which they are picked."""
        return self.picks_of_each([view])[0]

    def picks_of_each(self, views: Sequence[ImageView]) -> list[list[Tensor]]:
        """The same of several views."""
        pools, vectors = [self.pools(view) for view in views], list[tuple[Tensor, Tensor]]()
        for view, own in zip(views, pools, strict=True):
            relevance = view.rated(self.relevance(view))
            vectors += [self.vectors(view["features"], relevance, pool) for pool, _ in own]
        rows, lengths = zip(*vectors, strict=True)
        picks = iter(largest_volume_of_each(rows, lengths, [count for own in pools for _, count in own]))
        return [[pool[next(picks)] for pool, _ in own] for own in pools]

    def pools(self, view: ImageView) -> list[tuple[Tensor, int]]:
        """The tokens that compete with each other, ascending, and how many of them are kept."""
        if not view.info.llava or self.per is not None or view.grid is None or view.grid.frames == 1:
            return [(torch.arange(view.n, device=view.slots.device), view.keep)]
        frames = view.frames
        pools = [(frames == frame).nonzero().squeeze(1) for frame in frames.unique()]
        sizes = [len(pool) for pool in pools]
        budgets = fill([view.keep * size // view.n for size in sizes], sizes, view.keep, range(len(sizes)))
        return [(pool, count) for pool, count in zip(pools, budgets, strict=True) if count]

    def relevance(self, view: ImageView) -> Tensor:
        """r of each token, above 0, float64 [n]."""
        aligned = view["aligned"]
        found = sign_of(self.relevance_sign, aligned) * mean_cosine(aligned).double()
        low, high = found.aminmax()
        # the floor keeps r finite where all tokens are alike; greedy picks do not depend on r's scale
        scaled = (found - low + 1e-6) / (high - low).clamp(min=1e-12)
        theta = PORTS_THETA if self.theta is None and not aligned.clip else self.theta
        return scaled if theta is None else torch.exp((scaled - scaled.max()) * theta / (2 - 2 * theta))

    def vectors(self, features: Tensor, relevance: Tensor, pool: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors that span the volume, of these of an image's tokens: their directions, float32, and lengths."""
        if len(pool) < len(features):
            features, relevance = features[pool], relevance[pool]
        if self.score_dtype != "float32":  # directions, rounded as theirs are
            features = unit_rows(features.to(getattr(torch, self.score_dtype)))
            relevance = relevance * features.double().norm(dim=1)
        return features.float(), relevance
