"""Nuwa: anchors spread over small cells of the picture, each of which gathers its alike neighbourhood."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor, nn

from vlmprune.author import (
    AtLeast, ClsAttention, EncoderNeed, EncoderReading, ImageView, Load, Merged, Method, ModelInfo, Need, Positive,
    Share, TowerFeatures,
)  # fmt: skip
from vlmprune.methods.blocks import fill
from vlmprune.methods.members import mostly
from vlmprune.methods.neighbourhood import Places, by_cell, gathering, places_of
from vlmprune.methods.tiles import WHOLE_FIRST


@dataclass(frozen=True)
class MeanStates(EncoderNeed):
    """Mean of the outputs of several encoder layers. Shape [n, C]."""

    words: ClassVar[str] = "mean of encoder states"
    cost_words: ClassVar[str] = "a mean over layers, O(layers N C)"
    taps: ClassVar[tuple[str, ...]] = ("states",)

    numbers: tuple[int, ...] = ()

    @property
    def layers(self) -> tuple[int, ...]:
        return self.numbers

    def read(self, at: EncoderReading) -> Tensor:
        return torch.stack([at.states(layer).rows.float() for layer in self.numbers]).mean(0)

    def flops(self, load: Load) -> float:
        return load.pairs(load.shape.encoder_width)


@dataclass
class Nuwa(Method):
    """Keeps anchors from all over the picture, and adds to each what is alike around it.

    Paper: Nuwa: Mending the Spatial Integrity Torn by VLM Token Pruning (ICLR 2026, arXiv 2602.02951): its stage before
    the LLM. The second one cuts by attention of the last prompt token before layer 16, as `fastv@16` does; the preset
    `nuwa-64` is `nuwa:112 > fastv@16:16`.

    Formula: a [n] = CLS attention at the layer that is projected; x [n, C] = rows that the projector reads; z [n, C] =
    mean of the outputs of layers 16 to 24 of 24. Candidates: the top `quota` of a in each 2 x 2 cell of the grid.
    Anchors: the top `keep` candidates. w_kj = relu(cos(z_k, z_j)) max(0, 1 - |k - j| / radius), with distances on the
    grid; if a_k is at or above the quantile `percentile` of the anchors' a, w_kj = 0 but for j = k. Rows of w are
    divided by their sums, then w_kk = 1. Out: y_k = sum_j w_kj x_j over all n tokens, in order of position.
    Time O(keep n C), memory O(keep n).

    Defaults: on LLaVA-1.5 112, 224 and 336 anchors, for 64, 128 and 192 tokens per layer on average with the second
    stage; radius sqrt(280) cells, percentile 0.55, w_kk = 1. On Qwen2.5-VL a is the attention received in the last
    layer, z of layers 8 to 24 of 32, the radius 0.8 diagonals of the grid, percentile 0.1, and w_kk stays as it is. The
    quota is the smallest that yields `keep` candidates. Positions are kept, also on LLaVA. LLaVA-NeXT: the whole image
    and the canvas of tiles by themselves, each with its share of the budget. Ours: all other LLaVAs as LLaVA-1.5, all
    other families as Qwen2.5-VL, tile by tile and frame by frame.

    Args:
        quota: candidates of a cell; more if these are fewer than `keep`. The authors' 2 and 3 on LLaVA-NeXT, 3 on Qwen.
        percentile: see above; by default as the authors on this family, like the next two.
        radius: in cells of the grid.
        self_weight: "overwrite" sets w_kk = 1 after rows are divided, "normalised" leaves it as it is.
        compat: "official" keeps every token if the budget needs all four of a cell, and fewer tokens than the budget
            where cells have no more to give.

    Differences from the authors' code:
        - An image gets its own budget and positions; theirs spreads one over all images of a call.
        - On LLaVA-NeXT rows and columns of tiles are not swapped, and newlines go first; theirs keeps all of them.
        - On Qwen2.5-VL z is in the order of the tokens (theirs is in that of the windows), and is the mean of a token's
          patches; theirs is put through the merger.
        - On an odd grid the last row and column have no anchors on LLaVA unless the budget asks for them.
    """

    name: ClassVar[str] = "nuwa"
    stage: ClassVar[str] = "vision"
    summary: ClassVar[str] = "anchors from all cells of the picture; what is alike around them is added to each"
    merges: ClassVar[bool] = True

    quota: Annotated[int, AtLeast(1)] | None = None
    percentile: Annotated[float, Share] | None = None
    radius: Annotated[float, Positive] | None = None
    self_weight: Literal["overwrite", "normalised"] | None = None
    compat: Literal["paper", "official"] = "paper"

    def needs(self, info: ModelInfo) -> dict[str, Need]:
        first, last, depth = (16, 24, 24) if info.llava else (8, 24, 32)
        numbers = {max(0, round(layer * info.encoder_layers / depth) - 1) for layer in range(first, last + 1)}
        return {"rows": TowerFeatures(), "attention": ClsAttention(), "states": MeanStates(tuple(sorted(numbers)))}

    def positions(self, info: ModelInfo) -> str:
        return "original"

    def pool(self, info: ModelInfo) -> str:
        return "image" if info.family in WHOLE_FIRST else "frame"

    def select(self, view: ImageView) -> Merged:
        rows, parts = view["rows"].rows.float(), places_of(view)
        sizes = [len(part.tokens) for part in parts]
        budgets = fill([view.keep * size // view.n for size in sizes], sizes, view.keep, range(len(parts)))
        features, anchors = list[Tensor](), rows.new_empty(0, dtype=torch.long)
        members = torch.full_like(view.slots, -1)
        for part, keep in zip(parts, budgets, strict=True):
            if not keep:
                continue
            kept, weights = self.part(view, part, keep)
            into = mostly(weights, kept)
            members[part.tokens] = torch.where(into >= 0, into + len(anchors), -1)
            anchors = torch.cat([anchors, part.tokens[kept]])
            features.append(weights @ rows[part.tokens])
        made = Merged(torch.cat(features), anchors, space="tower", members=members)
        return made.ordered(anchors.argsort())

    def part(self, view: ImageView, part: Places, keep: int) -> tuple[Tensor, Tensor]:
        """The anchors [k] among the m tokens of one part, and the weights [k, m] with which they gather these."""
        score, llava = view["attention"][part.tokens].float(), view.info.llava
        kept = by_cell(score, part, keep, self.quota or 1, whole=llava, exact=self.exact)
        found = nn.functional.pad(score[kept], (0, max(0, keep - len(kept))))  # zeros: the authors' padding
        percentile = self.percentile if self.percentile is not None else 0.55 if llava else 0.1
        high = score[kept] >= torch.quantile(found, percentile)
        radius = self.radius or (280**0.5 if llava else 0.8 * part.diagonal)
        weights = gathering(view["states"][part.tokens].float(), part, kept, high, radius)
        if (self.self_weight or ("overwrite" if llava else "normalised")) == "overwrite":
            weights = weights.scatter(1, kept[:, None], 1.0)
        return kept, weights
