"""G-Prune: spreads information over a graph of similar tokens, and keeps the tokens where it gathers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor, nn

from vlmprune.author import AtLeast, Features, ImageView, Method, ModelInfo, Need, Positive, Share, ascending, top_k
from vlmprune.methods.blocks import fill
from vlmprune.methods.tiles import whole_tile


@dataclass
class GPrune(Method):
    """Tokens are the nodes of a graph, and each passes its norm on along the edges; those that gather most are kept.

    Paper: What Kind of Visual Tokens Do We Need? Training-free Visual Token Pruning for Multi-modal Large Language
    Models from the Perspective of Graph (AAAI 2025, arXiv 2501.02268).

    Formula: X [n, D] projected features, u_i = x_i / |x_i|, A = U U^T [n, n]. P = softmax over rows of A / temperature,
    without the edges where A < similarity. degree_j = edges of row j with P > 0; w = (|x_1|, ..., |x_n|);
    score = w P^iterations / degree; the top `keep` stay. Time O(n^2 D + n^2 iterations), memory n^2 numbers.

    Defaults: similarity 0.5, temperature 0.03, 5 iterations, half of the tokens; positions are kept. If the first of
    several tiles shows the whole image (LLaVA-NeXT, OneVision), it is one graph and the other tiles are a second one,
    with budgets in proportion to their sizes; any other image or video is one graph. Slots without a patch
    (image_newline) always stay, up to half of the budget (more if no other tokens are left).

    Args:
        similarity: cosine (0 to 1) below which two tokens have no edge.
        temperature: of the softmax; a smaller one favours the strongest edge, which is each token's edge to itself.
        iterations: how many steps information is passed on.
        score_dtype: "float32", "float16" or "bfloat16". The authors compute in the model's own precision, in which weak
            edges vanish and degrees fall.
        compat: "official" keeps all slots without a patch beyond the budget, and int(keep * size / n) of each graph
            (theirs int(share * size), which is one more where rounding made keep / n less than the share).
            "uniprune" is UniPruneBench's port: slots without a patch compete, the first tile is a graph of its own on
            every family (on InternVL by mistake, which has the whole image last), and kept tokens are renumbered
            except on Qwen.

    Differences from the authors' code:
        - The budget counts newline slots and is exact; theirs needs LLaVA-NeXT with several tiles and a batch of 1.
        - A vector is multiplied with P `iterations` times, at n^2 cost; theirs forms P's power, at n^3. The scores are
          the same. With `compat` and in half precision the power is formed here too, to get the same rounding.
    """

    name: ClassVar[str] = "gprune"
    stage: ClassVar[str] = "vision"
    summary: ClassVar[str] = "tokens that gather most information when it spreads over a graph of similar features"

    similarity: Annotated[float, Share] = 0.5
    temperature: Annotated[float, Positive] = 0.03
    iterations: Annotated[int, AtLeast(0)] = 5
    score_dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    compat: Literal["paper", "official", "uniprune"] = "paper"

    @property
    def exact(self) -> bool:
        return self.compat == "paper"

    def needs(self, info: ModelInfo) -> dict[str, Need]:
        return {"features": Features()}

    def positions(self, info: ModelInfo) -> str:
        return "compact" if self.compat == "uniprune" and not info.family.startswith("qwen") else "original"

    def select(self, view: ImageView) -> Tensor:
        return ascending(torch.cat(self.parts(view)))

    def parts(self, view: ImageView) -> list[Tensor]:
        """Token indices: those without a patch that stay, then those of each graph by falling score."""
        graphs = self.graphs(view)
        plain = (view.cells < 0).nonzero().squeeze(1)
        if self.compat == "paper":
            sizes = [len(graph) for graph in graphs]
            plain = plain[: max(view.keep // 2, view.keep - sum(sizes))]
            left = view.keep - len(plain)
            budgets = fill([left * size // sum(sizes) for size in sizes], sizes, left, range(len(sizes)))
        else:
            plain = plain if self.compat == "official" else plain[:0]
            budgets = [max(1, view.keep * len(graph) // view.n) for graph in graphs]
        scores = [self.score(view["features"][graph]) for graph in graphs]
        return [plain, *(graph[top_k(s, budget)] for graph, s, budget in zip(graphs, scores, budgets))]

    def graphs(self, view: ImageView) -> list[Tensor]:
        """Token indices of each graph, ascending."""
        shown = (view.cells >= 0) | (self.compat == "uniprune")
        tile = whole_tile(view)
        apart = tile is not None if self.compat == "uniprune" else tile == 0
        first = (view.frames == 0) | (not apart)
        graphs = [(shown & part).nonzero().squeeze(1) for part in (first, ~first)]
        return [graph for graph in graphs if len(graph)]

    def flow(self, features: Tensor) -> Tensor:
        """P of the formula, [n, n], of one graph's features [n, D], in `score_dtype`."""
        unit = nn.functional.normalize(features.to(getattr(torch, self.score_dtype)), dim=1)
        weights = unit @ unit.T
        weights = weights.masked_fill(weights < self.similarity, 0) / self.temperature
        return weights.masked_fill(weights.abs() < 1e-6, -5000).softmax(1)

    def score(self, features: Tensor) -> Tensor:
        """Importance of each token of one graph, [n], from its features [n, D]."""
        flow = self.flow(features)
        degree, mass = (flow > 0).sum(1), features.to(flow.dtype).norm(dim=-1)
        if self.score_dtype != "float32" or self.compat != "paper":
            return (mass[None] @ torch.linalg.matrix_power(flow, self.iterations))[0] / degree
        for _ in range(self.iterations):
            mass = (mass[:, None] * flow).sum(0)  # pairwise sums round a third as much as a matrix product
        return mass / degree
