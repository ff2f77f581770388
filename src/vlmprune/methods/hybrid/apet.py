"""ApET: keeps the tokens that a few basis tokens explain worst, and merges the others into them, at two depths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from vlmprune.author import (
    At, AtLeast, HiddenStates, ImageView, Keep, Merged, ModelInfo, Need, NotNegative, TowerFeatures, UserError, top_k,
)  # fmt: skip
from vlmprune.methods.approximation import first, joined, most_similar, unexplained
from vlmprune.methods.decoder.staged import Staged, interpolate
from vlmprune.methods.farthest import farthest_first
from vlmprune.methods.members import owned

# 96 tokens before the LLM, then 32, are 64 on average; the same in proportion, up to all tokens before it.
COUNTS = {384: (576.0, 192.0)}


@dataclass
class ApET(Staged):
    """Approximation error: tokens that are no combination of a few basis tokens stay; it reads no attention.

    Paper: ApET: Approximation-Error Guided Token Compression for Efficient VLMs (CVPR 2026, arXiv 2602.19870).

    Formula: X [n, C] = the rows that the projector reads, or the hidden states that enter layer l. B [k, C]: k of
    these, each the farthest from those before it. W = (B B^T + ridge)^-1 B X^T; r_i = |x_i - W_i^T B|. The top `keep`
    of r stay. The last k of these are written over by the basis (the i-th by position with the i-th of B; inside the
    LLM the i-th by falling r); the others are heads. Each dropped token joins the head with the most similar row
    (cosine; of equal ones the first by r); a head becomes the mean of itself and those that joined it. Order: by
    position.
    Time O(n k C + n keep C) per act, memory O(n C).

    Defaults: k = 10. `keep` is the average over layers: 192, 128 and 64 tokens of LLaVA-1.5 are 288, 192 and 96 before
    the LLM and 96, 64 and 32 before layer 16 of 32 (the authors publish the last; the others follow by its rule).
    Ours: budgets above two thirds of the tokens are interpolated; the layer scales with the depth. Before the LLM each
    tile or frame by itself, inside it all tokens of an image. Positions: renumbered on LLaVA, kept elsewhere.

    Args:
        layers: the decoder layer (0-based) before which it acts a second time.
        inside: whether it does so. Without, `keep` is what it leaves before the LLM, as the authors do on Qwen2.5-VL.
        basis: k, at most keep - 1.
        ridge: added to the diagonal of B B^T.
        basis_write: "replace" as above; "half" writes the mean of both (Qwen2.5-VL); "none" makes all kept tokens
            heads; "append" too, but of keep - k tokens, and puts B behind them, the CLS row before (Video-LLaVA).

    Differences from the authors' code:
        - B begins with the row farthest from the mean; theirs with a random one, so that its runs differ.
        - If as many tokens arrive as an act keeps, they stay as they are; theirs writes the basis into them.
        - On LLaVA-NeXT all tokens of the image compete inside the LLM; theirs cuts only the first tile, and keeps
          newlines, which here go first.
        - Theirs writes the basis in three ways on three families, and on Qwen2.5-VL counts all images as one.
    """

    name: ClassVar[str] = "apet"
    stage: ClassVar[str] = "vision, decoder"
    summary: ClassVar[str] = "tokens that a few basis tokens explain worst; the rest is merged into them"
    budget_means: ClassVar[str] = "an average over layers"
    merges: ClassVar[bool] = True
    reads_attention: ClassVar[bool] = False

    inside: bool = True
    basis: Annotated[int, AtLeast(1)] = 10
    ridge: Annotated[float, NotNegative] = 1e-5
    basis_write: Literal["replace", "half", "append", "none"] = "replace"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layers is not None and (len(self.layers) > 1 or not self.inside):
            raise UserError(f"apet: layers={self.layers} must be one layer, and none with inside=False.")

    def positions(self, info: ModelInfo) -> str:
        return "compact" if info.llava else "original"

    def pool(self, info: ModelInfo) -> str:
        return "frame"

    def needs(self, info: ModelInfo) -> dict[str, Need]:
        return {"rows": TowerFeatures(), **({"states": HiddenStates()} if self.inside else {})}

    def acts(self, info: ModelInfo, keep: Keep) -> Sequence[int | At | None]:
        layers, states = self.schedule(info) if self.inside else (), HiddenStates()
        later = [At(layer, {"states": states}, pool="image", sees_every_slot=True) for layer in layers]
        return [At(None, {"rows": TowerFeatures()}), *later]

    def usual_layers(self, info: ModelInfo) -> tuple[tuple[int, ...], int]:
        return (16,), 32

    def shares(self, share: float, layers: Sequence[int], info: ModelInfo) -> Sequence[float]:
        return [count / 576 for count in interpolate(COUNTS, share, of=576)] if self.inside else [share]

    def select(self, view: ImageView) -> Merged:
        inside = view.act.layer is not None
        rows = (view["states"].visual if inside else view["rows"].rows).float()
        if self.basis_write == "append":
            return self.appended(view, rows, None if inside else view["rows"].cls)
        count = min(self.basis, view.n if self.basis_write == "none" else view.keep - 1)
        basis = farthest_first(rows, first(rows), count)
        order = top_k(unexplained(rows, rows[basis], self.ridge), view.keep)
        written = order[view.keep - count :] if self.basis_write != "none" else order[:0]
        heads = order[: view.keep - len(written)]
        dropped, into = most_similar(rows, heads, order)
        merged = rows.index_copy(0, heads, joined(rows, heads, dropped, into))
        places = written if inside else written.sort().values
        members = owned(view.n, heads)
        members[dropped] = into
        if len(written):
            half = self.basis_write == "half"
            merged[places] = (rows[basis] + rows[places]) / 2 if half else rows[basis]
            numbers = len(heads) + torch.arange(count, device=basis.device)
            head = torch.isin(basis, heads)  # stays one
            members[basis[~head]] = numbers[~head]
            if half:
                members[places] = numbers
        kept = torch.cat([heads, places])
        made = Merged(merged[kept], kept, space="llm" if inside else "tower", members=members)
        return made.ordered(kept.argsort())

    def appended(self, view: ImageView, rows: Tensor, cls: Tensor | None) -> Merged:
        """The CLS row, heads by falling error, and the basis; by position on families that keep positions."""
        cls = rows[:0] if cls is None else cls[: view.keep > 1].float()
        count = max(0, min(self.basis, view.keep - 1 - len(cls)))
        basis = farthest_first(rows, first(rows), count)
        errors = unexplained(rows, rows[basis], self.ridge).index_fill(0, basis, float("-inf"))
        heads = top_k(errors, view.keep - len(cls) - count)
        dropped, into = most_similar(rows, heads, heads)
        features = torch.cat([cls, joined(rows, heads, dropped, into), rows[basis]])
        anchors = torch.cat([heads.new_full((len(cls),), -1), heads, basis])
        members = owned(view.n, anchors)
        members[dropped] = torch.where(members[dropped] < 0, len(cls) + into, members[dropped])
        space = "llm" if view.act.layer is not None else "tower"
        made = Merged(features, anchors, space, members=members)
        return made.ordered(anchors.argsort()) if self.positions(view.info) == "original" else made
