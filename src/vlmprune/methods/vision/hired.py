"""HiRED: a budget for each tile of a high-resolution image, filled with tokens that the CLS token attends to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from vlmprune.author import ClsAttention, Depth, ImageView, Method, ModelInfo, Need, Share, USED, ascending, top_k
from vlmprune.methods.blocks import fill
from vlmprune.methods.tiles import cuts_into_tiles, shown_by, whole_tile


@dataclass
class HiRED(Method):
    """Early CLS attention on the whole image decides which tiles matter, late CLS attention which of their tokens.

    Paper: HiRED: Attention-Guided Token Dropping for Efficient Inference of High-Resolution Vision-Language Models
    (AAAI 2025, arXiv 2408.10945).

    Formula: e, s [n] = CLS attention at the encoder's first layer and at the one that is projected, mean over heads.
    The tile with the whole image (N tokens) gets b_0 = int(keep * alpha). Its top int(N * (1 - alpha)) tokens by e are
    hot; tile i gets b_i = (keep - b_0) * h_i / sum(h), where h_i is the number of hot tokens at tile i's place in the
    image. Kept: the top b_i of s in each tile, in order of position. For an image without tiles: the top `keep` of s.
    Time O(n log n), memory O(n).

    Defaults: alpha 0.5, keep 0.2 of the tokens on all models; CLIP's layers 0 and 22; positions renumbered on LLaVA.
    Ours: on InternVL and SmolVLM, whose slots do not tell how tiles lie, all tiles but the whole image get equal
    budgets; in videos all frames compete by s; without a CLS token e and s are the attention received from all tokens.

    Args:
        alpha: share of the budget for the tile with the whole image, 0 to 1.
        compat: "official" cuts the whole image's cells, in raster order, into one run for each other tile, and drops
            fractions of b_i, so that one token for several tiles becomes none.

    Differences from the authors' code:
        - Hot tokens are counted at the tile's place. Theirs uses horizontal bands, which fit only tiles in one column.
        - Fractions go, one token at a time, to the tiles that are furthest below their share; tokens that a tile has no
          room for go to other tiles. Theirs keeps fewer than `keep`.
        - The budget counts tokens that reach the LLM; theirs also spends it on padding, which is then cut off.
        - The model lays out the kept tokens. Theirs swaps rows and columns of tiles and loses most of a wide image.
        - Each image of a batch is scored by itself; on LLaVA-1.5 theirs uses the first image's choice for all.
    """

    name: ClassVar[str] = "hired"
    stage: ClassVar[str] = "vision"
    summary: ClassVar[str] = "a budget for each tile by early CLS attention, filled by late CLS attention"

    least: ClassVar[int] = 0  # official: fractions below one token, in every tile

    alpha: Annotated[float, Share] = 0.5
    compat: Literal["paper", "official"] = "paper"

    def needs(self, info: ModelInfo) -> dict[str, Need]:
        early: dict[str, Need] = {"early": ClsAttention(Depth(1, 24))} if cuts_into_tiles(info) else {}
        return {**early, "late": ClsAttention(USED)}

    def select(self, view: ImageView) -> Tensor:
        whole, late, frames = whole_tile(view), view["late"], view.frames
        view.rated(late)
        if view.grid is None or whole is None:
            return ascending(top_k(late, view.keep))
        tiles = [(frames == tile).nonzero().squeeze(1) for tile in range(view.grid.frames)]
        budgets = self.budgets(view, whole, [len(tokens) for tokens in tiles])
        return ascending(torch.cat([tokens[top_k(late[tokens], k)] for tokens, k in zip(tiles, budgets, strict=True)]))

    def budgets(self, view: ImageView, whole: int, sizes: list[int]) -> list[int]:
        """Tokens to keep in each tile; tile `whole` shows the whole image."""
        first = min(int(view.keep * self.alpha), sizes[whole])
        rest = min(view.keep - first, sum(sizes) - sizes[whole])
        hot = self.hot(view, whole, sizes)
        shares = (hot / hot.sum().clamp(min=1) * rest).tolist()  # in float32, as theirs: the fractions decide
        counts = [min(int(share), size) for share, size in zip(shares, sizes, strict=True)]
        if self.compat == "official":
            counts[whole] = first
            return counts
        counts[whole] = view.keep - rest
        others = [tile for tile in range(len(sizes)) if tile != whole]
        return fill(counts, sizes, view.keep, sorted(others, key=lambda tile: int(shares[tile]) - shares[tile]))

    def hot(self, view: ImageView, whole: int, sizes: list[int]) -> Tensor:
        """Hot tokens at each tile's place in the whole image, or the tiles' sizes if places are unknown: [tiles]."""
        assert view.grid is not None
        cells = view.grid.rows * view.grid.cols
        base = (view.frames == whole).nonzero().squeeze(1)
        hot = base[top_k(view["early"][base], int(len(base) * (1 - self.alpha)))]
        shown = shown_by(view)
        if self.compat == "official":
            others = [tile for tile in range(len(sizes)) if tile != whole]
            shown = torch.tensor(others, device=hot.device).repeat_interleave(-(-cells // len(others)))
        if shown is None or not len(hot):
            return torch.tensor([0 if tile == whole else size for tile, size in enumerate(sizes)], device=hot.device)
        return torch.bincount(shown[view.cells[hot] % cells], minlength=len(sizes))
