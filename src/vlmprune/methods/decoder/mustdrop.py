"""MustDrop: drops image tokens that the text as a whole and each single word ignore, and cuts the cache."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from vlmprune.author import (
    Act, At, ClsAttention, Depth, ImageView, Keep, ModelInfo, Need, NotNegative, Observes, Share, TextQueryAttention,
    UserError, ascending, top_k,
)  # fmt: skip
from vlmprune.methods.budgets import ratio_for
from vlmprune.methods.decoder.staged import Staged


@dataclass
class MustDrop(Staged, Observes):
    """At several layers, a dual attention filter that always passes the encoder's key tokens; then cuts the cache.

    Paper: Multi-Stage Vision Token Dropping: Towards Efficient Multimodal Large Language Model (arXiv 2411.10803): its
    stages "prefill" and "decode". Its "vision" stage, which merges windows of patches inside the encoder, is not part
    of this; its rule, applied to tokens after the encoder, is tested in `tests/golden_runners/spatial_merge.py`.

    Formula: A [T, n] = mean over heads of the rows of the T text tokens after the image at decoder layer K-1;
    g = sum over rows. Token j goes if g_j < global_threshold * sum(g) and max over rows of A_j < individual_threshold,
    unless it is a key token: one of the ceil(key_share * n) that the CLS token of the last encoder layer attends to
    most. After the prefill the caches of layers K_1 - 1 up to the last K hold only the tokens that the last act kept.
    Time O(T n) per act, memory O(T n).

    Defaults: acts before layers 3, 7, 11, 15 of 32, or at the same depth of another model. Without thresholds (ours)
    each image gets one threshold, of both kinds, that meets its budget: besides the key tokens it keeps those with the
    largest max(g_j / sum(g), max A_j). Each act keeps the same share q of its tokens, so that `keep` is the average
    that layers pass on, as the authors count. Positions: renumbered on LLaVA, kept elsewhere.

    Args:
        layers: decoder layers (0-based) before which it acts.
        global_threshold, individual_threshold: with them it takes no budget, as the image decides how much is kept. The
            authors' for 192, 128 and 64 tokens of LLaVA-1.5: 0.001 and 0.001, 0.0012 and 0.001, 0.011 and 0.01
            (TextVQA); 0.005 and 0.001 for 64 (VizWiz). They tune them for each task.
        key_share: the share of tokens that are key tokens; 0 for none.
        kv_prune: whether caches are cut (except those of sliding windows and quantised ones). Without a cache nothing
            is cut: an answer, also one that is scored, then sees what the prompt saw.

    Differences from the authors' code:
        - Towers without a CLS token use the received attention to find key tokens (ours).
        - New tokens continue from the prompt's last position id in every layer; theirs use the length of that layer's
          cache, so that in cut layers they are nearer to the text than when it was read.
        - Any batch and number of images; a single key token is no error. If nothing passes, the best token stays.
    """

    name: ClassVar[str] = "mustdrop"
    summary: ClassVar[str] = "at several layers, tokens that all text or one word attends to; also cuts the cache"
    budget_means: ClassVar[str] = "an average over layers"

    global_threshold: Annotated[float, NotNegative] | None = None
    individual_threshold: Annotated[float, NotNegative] | None = None
    key_share: Annotated[float, Share] = 0.08
    kv_prune: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.global_threshold is None) != (self.individual_threshold is None):
            raise UserError("mustdrop: give both global_threshold and individual_threshold, or neither.")

    @property
    def budgeted(self) -> bool:
        return self.global_threshold is None

    @property
    def exact(self) -> bool:
        return self.budgeted

    def positions(self, info: ModelInfo) -> str:
        return "compact" if info.llava else "original"

    def needs(self, info: ModelInfo) -> dict[str, Need]:
        keys: dict[str, Need] = {"cls": ClsAttention(Depth(24, 24))} if self.key_share else {}
        return {**keys, "text": TextQueryAttention()}

    def acts(self, info: ModelInfo, keep: Keep) -> Sequence[int | At | None]:
        text: dict[str, Need] = {"text": TextQueryAttention()}
        return [*super().acts(info, keep)[:1], *(At(layer, text) for layer in self.schedule(info)[1:])]

    def usual_layers(self, info: ModelInfo) -> tuple[tuple[int, ...], int]:
        return (3, 7, 11, 15), 32

    def shares(self, share: float, layers: Sequence[int], info: ModelInfo) -> list[float]:
        ratio = ratio_for(share, [*(layer - 1 for layer in layers), info.decoder_layers])
        return [ratio ** (i + 1) for i in range(len(layers))]

    def budget(self, act: Act, n: int, total: int) -> int:
        return super().budget(act, n, total) if self.budgeted else max(1, n - 1)

    def select(self, view: ImageView) -> Tensor:
        rows = view["text"] if len(view["text"]) else torch.zeros_like(view["text"].sum(0))[None]
        together, single = rows.sum(0), rows.amax(0)
        key = torch.isin(view.slots, view.memory["keys"] if self.key_share else view.slots[:0])
        order = top_k(torch.maximum(together / together.sum().clamp(min=1e-12), single), view.n)
        if self.global_threshold is not None and self.individual_threshold is not None:
            ignored = (together < self.global_threshold * together.sum()) & (single < self.individual_threshold)
            passed = (~ignored | key).nonzero().squeeze(1)
            return passed if len(passed) else order[:1]
        return ascending(torch.cat([order[key[order]], order[~key[order]]])[: view.keep])

    def observe(self, view: ImageView) -> None:
        """Choose the key tokens at the first act, of all that are there; in each frame, where these compete apart."""
        if self.key_share and view.act.number == 0:
            part = torch.where(view.cells < 0, -1, view.frames if self.per == "frame" else 0)
            parts = [(part == one).nonzero().squeeze(1) for one in part[part >= 0].unique()]
            keys = [own[top_k(view["cls"][own], math.ceil(self.key_share * len(own)))] for own in parts]
            view.memory["keys"] = view.slots[torch.cat([part[:0], *keys])]
