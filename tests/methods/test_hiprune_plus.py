"""HiPrune++."""

from __future__ import annotations

import torch
from harness_views import (
    shown,
)

from vlmprune.core.selectors import top_k
from vlmprune.core.view import Grid
from vlmprune.methods.vision.hiprune import HiPrune
from vlmprune.methods.vision.hiprune_plus import HiPrunePlus


class TestHiPrunePlus:
    def test_a_tenth_of_the_budget_is_like_the_text_and_the_weakest_registers_give_way(self) -> None:
        view = shown(HiPrunePlus(), n=256, keep=64, grid=Grid(16, 16))
        near, registers = HiPrune().parts(view)
        chosen = HiPrunePlus().select(view)
        new = sorted(set(chosen.tolist()) - set(near.tolist()) - set(registers[:-6].tolist()))
        assert len(new) == 6 and set(near.tolist()) <= set(chosen.tolist())
        free = [i for i in range(256) if i not in set(near.tolist()) | set(registers[:-6].tolist())]
        likeness = torch.cosine_similarity(view["aligned"].visual[free], view["aligned"].text.mean(0)[None])
        assert new == sorted(free[i] for i in top_k(likeness, 6).tolist())

    def test_official_adds_them_on_top(self) -> None:
        view = shown(HiPrunePlus(), n=256, keep=64, grid=Grid(16, 16))
        base = HiPrune(compat="official").select(view)
        more = HiPrunePlus(compat="official").select(view)
        assert len(more) == 70 and set(base.tolist()) <= set(more.tolist()) and not HiPrunePlus(compat="official").exact

    def test_the_sign_turns_the_choice_round(self) -> None:
        view = shown(HiPrunePlus(), n=64, keep=20, grid=Grid(8, 8))
        assert torch.equal(HiPrunePlus(relevance_sign=-1).relevance(view), -HiPrunePlus().relevance(view))
        assert not torch.equal(HiPrunePlus(relevance_sign=-1).select(view), HiPrunePlus().select(view))

    def test_without_beta_it_is_hiprune(self) -> None:
        view = shown(HiPrunePlus(), n=64, keep=20, grid=Grid(8, 8))
        assert torch.equal(HiPrunePlus(beta=0.0).select(view), HiPrune().select(view))

    def test_a_prompt_without_text(self) -> None:
        view = shown(HiPrunePlus(), n=64, keep=20, grid=Grid(8, 8), texts=0)
        assert len(HiPrunePlus().select(view)) == 20
