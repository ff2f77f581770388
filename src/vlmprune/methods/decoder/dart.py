"""DART: keeps tokens that are unlike a few pivots, so that duplicates are dropped."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor, nn

from vlmprune.author import (
    Act, AtLeast, DecoderKeys, DecoderMethod, DecoderStates, ImageView, ModelInfo, Need, UserError, ascending, top_k,
)  # fmt: skip
from vlmprune.methods.budgets import rounded_down


@dataclass(frozen=True)
class PivotKeys(DecoderKeys):
    """Keys of which those of the text are read, too, so that the question has a say."""

    of_text: ClassVar[bool] = True


@dataclass
class Dart(DecoderMethod):
    """Duplication-aware reduction: for each pivot in turn, keeps the remaining tokens that are least similar to it.

    Paper: Stop Looking for Important Tokens in Multimodal Language Models: Duplication Matters More (EMNLP 2025,
    arXiv 2502.11494).

    Formula: k [n + T, C], h [n + T, D] = rotated keys (KV heads side by side) and output after the final norm of
    decoder layer K-1. Pivots: the tokens with the largest |k|_1, p of the image's n and q of the T text tokens after
    it. Kept: the image pivots, then for each of the p + q pivots the ceil((keep - p) / (p + q)) other image tokens
    whose h has the smallest cosine with the pivot's; the last pivot gets the rest of the budget.
    Time O((p + q) n D), memory O(n D).

    Defaults: K = 2, p = q = 4 on every family (UniPruneBench: 10 and 5). Positions are kept.

    Args:
        layer: K, the decoder layer (0-based) before which it acts.
        image_pivots: p.
        text_pivots: q; fewer if fewer text tokens follow the image.
        compat: "official" gives each pivot keep // (p + q) tokens and takes pivots in the order of a CPython set.
            "uniprune", for reproduction only, also does this, rounds shares down, compares h after the norm of layer K,
            and renumbers positions on InternVL; its pivots are 10 and 5.
        start: for these two, the prompt column of the image's first token, on which that order depends.

    Differences from the authors' code:
        - The number kept is exact. Theirs is p + (p + q) * (keep // (p + q)): 132 for a budget of 128.
        - Pivots take turns in order of position, image before text. Theirs follow the hash table of a Python set.
        - Norms are those of each token's own keys; one copy of the LLaVA code reshapes before it permutes, which mixes
          tokens.
    """

    name: ClassVar[str] = "dart"
    summary: ClassVar[str] = "tokens least similar to a few pivot tokens, so that duplicates are dropped"

    image_pivots: Annotated[int, AtLeast(0)] = 4
    text_pivots: Annotated[int, AtLeast(0)] = 4
    compat: Literal["paper", "official", "uniprune"] = "paper"
    start: Annotated[int, AtLeast(0)] = 35

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.image_pivots + self.text_pivots == 0:
            raise UserError("dart: image_pivots and text_pivots are both 0: give at least one pivot.")

    @property
    def exact(self) -> bool:
        return self.compat == "paper"

    def needs(self, info: ModelInfo) -> dict[str, Need]:
        return {"keys": PivotKeys(), "states": DecoderStates(norm="next" if self.compat == "uniprune" else "final")}

    def positions(self, info: ModelInfo) -> str:
        return "compact" if self.compat == "uniprune" and info.family == "internvl" else "original"

    def budget(self, act: Act, n: int, total: int) -> int:
        return rounded_down(act.keep, n) if self.compat == "uniprune" else super().budget(act, n, total)

    def select(self, view: ImageView) -> Tensor:
        return ascending(torch.cat(self.rounds(view)))

    def pivots(self, view: ImageView) -> tuple[Tensor, Tensor]:
        """Image pivots (0..n-1) and text pivots (0..T-1), largest norm first."""
        keys = view["keys"]
        text = top_k(keys.text.float().norm(p=1, dim=-1), self.text_pivots)
        count = self.image_pivots if len(text) else max(1, self.image_pivots)
        count = min(count, view.keep) if self.exact else count
        return top_k(keys.visual.float().norm(p=1, dim=-1), count), text

    def order(self, image: Tensor, text: Tensor, n: int) -> list[int]:
        """The pivots in their turns, as rows of the image's tokens (0..n-1) with the text's after them."""
        if self.exact:
            return ascending(image).tolist() + ascending(text + n).tolist()
        return [column - self.start for column in set((torch.cat([image, text + n]) + self.start).tolist())]

    def rounds(self, view: ImageView) -> list[Tensor]:
        """The image pivots, then the tokens that each pivot adds in its turn, the least similar first."""
        image, text = self.pivots(view)
        visual, states = view["states"].visual.float(), torch.cat([*view["states"]]).float()
        order, left = self.order(image, text, view.n), view.keep - len(image)
        quota = -(-left // len(order))
        if not self.exact:
            left, quota = view.n, view.keep // (self.image_pivots + self.text_pivots)
        free = torch.ones(view.n, dtype=torch.bool, device=visual.device)
        rounds = [image]
        for pivot in order:
            free[rounds[-1]] = False
            candidates = free.nonzero().squeeze(1)
            likeness = nn.functional.cosine_similarity(states[pivot], visual[candidates], dim=-1)
            rounds.append(candidates[top_k(-likeness, min(quota, left))])
            left -= len(rounds[-1])
        return rounds
