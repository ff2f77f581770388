"""Random subset: the baseline that a method has to beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from vlmprune.author import Act, AtLeast, ImageView, ModelInfo, Scorer
from vlmprune.core.method import layer_within
from vlmprune.methods.budgets import rounded_down


@dataclass
class Random(Scorer):
    """Keeps a subset drawn uniformly at random: `kept = sort(randperm(n)[:keep])`.

    Paper: the Random-Pre and Random-Intra baselines of UniPruneBench (arXiv 2511.02650).

    Formula: p = a permutation of 0..n-1 from a CPU generator; score[p[i]] = -i, shape [n].
    Time O(n log n), memory O(n).

    Defaults: before the LLM on every family; `random@2` acts before decoder layer 2, as Random-Intra does. Repeat it
    over at least three seeds and report the spread.

    Args:
        layer: decoder layer (0-based) before which it acts, or None to act before the LLM.
        compat: "uniprune" rounds shares down, and renumbers positions on InternVL. For reproduction only.

    Differences from the authors' code:
        - The generator is seeded from the run's seed and the prompt; theirs is the device's global one, unseeded.
        - Kept tokens stay in image order. UniPruneBench's InternVL path feeds them shuffled.
    """

    name: ClassVar[str] = "random"
    stage: ClassVar[str] = "vision, decoder"
    summary: ClassVar[str] = "a uniformly drawn subset of the tokens, before the LLM or (random@K) inside it"
    draws: ClassVar[bool] = True

    layer: Annotated[int, AtLeast(1)] | None = None
    compat: Literal["paper", "uniprune"] = "paper"

    def decoder_layer(self, info: ModelInfo) -> int | None:
        return None if self.layer is None else layer_within(self.name, self.layer, info)

    def positions(self, info: ModelInfo) -> str:
        """Before the LLM those of the other methods that act there, so that only the choice of tokens is compared."""
        if self.compat == "uniprune" and info.family == "internvl":
            return "compact"
        return super().positions(info)

    def budget(self, act: Act, n: int, total: int) -> int:
        return rounded_down(act.keep, n) if self.compat == "uniprune" else super().budget(act, n, total)

    def score(self, view: ImageView) -> Tensor:
        order = torch.randperm(view.n, generator=view.generator())
        score = torch.empty(view.n)
        score[order] = -torch.arange(view.n, dtype=torch.float32)
        return score.to(view.slots.device)
