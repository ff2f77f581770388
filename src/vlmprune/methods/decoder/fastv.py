"""FastV: attention of the last prompt token early in the LLM."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from vlmprune.author import (
    Act, At, DecoderMethod, ImageView, Keep, LastQueryAttention, Merged, ModelInfo, Need, Scorer, Selection,
    TextQueryAttention, UserError, resolve_keep, top_k,
)  # fmt: skip
from vlmprune.methods.budgets import average_too_small, rounded_down
from vlmprune.methods.decoder.staged import share_of
from vlmprune.methods.members import owned


@dataclass
class FastV(Scorer, DecoderMethod):
    """Attention of the last prompt token, at the layer just before the cut.

    Paper: An Image is Worth 1/2 Tokens After Layer 2 (ECCV 2024, arXiv 2403.06764).

    Formula: score [n] = mean over heads of the softmax row of the last prompt token at decoder layer K-1, in the
    columns of the image; the top `keep` enter layer K, in image order, at the positions they had.
    Time O(n log n), memory O(n).

    Defaults: K = 2 on every family; the authors keep 50, 25 or 12.5 % of LLaVA-1.5's tokens.

    Args:
        layer: K, the decoder layer (0-based) before which it acts.
        query: "last", as in the authors' code, or "all_text": the mean over all text tokens after the image, which is
            closer to the average received attention that the paper describes.
        average: `keep` is instead the average that enters a layer, from which the number kept is computed: 192, 128 and
            64 of LLaVA-1.5's 576 tokens mean that 166, 98 and 30 are kept before K = 2 of 32 layers.
        compat: "uniprune" leaves the kept tokens in order of score, each with the position it had (on InternVL
            renumbered), and rounds shares down. For reproduction only: the image's tokens then see each other out of
            order.

    Differences from the authors' code:
        - The number kept follows from the budget. Theirs is a fixed count (research code), round(n (1 - r)) (the
          Hugging Face port) or int(n ratio) (UniPruneBench, which also leaves the kept tokens in order of score).
        - With a cache the choice is made once, at prefill. Without one each forward chooses again, as theirs does; then
          `logits_to_keep` says how many tokens at the end do not belong to the prompt.
        - One row is computed; theirs runs layer K-1 with full attention maps.
    """

    name: ClassVar[str] = "fastv"
    summary: ClassVar[str] = "tokens the last prompt token attends to at decoder layer K-1"

    query: Literal["last", "all_text"] = "last"
    average: bool = False
    compat: Literal["paper", "uniprune"] = "paper"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.average and self.compat != "paper":
            raise UserError("fastv: give average=True with compat='paper' only.")

    def needs(self, info: ModelInfo) -> dict[str, Need]:
        return {"attention": LastQueryAttention() if self.query == "last" else TextQueryAttention()}

    def score(self, view: ImageView) -> Tensor:
        rows = view["attention"]
        return rows if self.query == "last" else rows.mean(0).nan_to_num()  # without text all tokens score the same

    def positions(self, info: ModelInfo) -> str:
        return "compact" if self.compat == "uniprune" and info.family == "internvl" else "original"

    def acts(self, info: ModelInfo, keep: Keep) -> Sequence[int | At | None]:
        if self.average and isinstance(keep, float):
            self.share(keep, info.decoder_layers)  # raises its error before anything runs
        return super().acts(info, keep)

    def share(self, average: float, depth: int) -> float:
        """The share to keep before layer K, so that the share `average` of the tokens enters a layer on average.

        Raises:
            UserError: the layers before K alone already exceed that average.
        """
        left = (average * depth - self.layer) / (depth - self.layer)
        if left <= 0:
            raise average_too_small("fastv", average, self.layer, depth)
        return left

    def budget(self, act: Act, n: int, total: int) -> int:
        if self.average and total:
            return resolve_keep(self.share(share_of(act.keep, total), act.info.decoder_layers), n)
        return rounded_down(act.keep, n) if self.compat == "uniprune" else super().budget(act, n, total)

    @property
    def merges(self) -> bool:
        return self.compat == "uniprune"  # tokens as they were, in another order

    def select(self, view: ImageView) -> Selection:
        if self.compat == "paper":
            return super().select(view)
        order = top_k(self.score(view), view.keep)
        unchanged = torch.ones_like(order, dtype=torch.bool)
        return Merged(self.score(view)[order, None], order, unchanged=unchanged, members=owned(view.n, order))
