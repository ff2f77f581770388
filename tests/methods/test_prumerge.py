"""PruMerge and PruMerge+."""

from __future__ import annotations

import pytest
import torch
from harness import RAGGED, built, inputs_of
from harness_spies import Spy
from harness_views import (
    LLAVA,
    QWEN,
    image,
    values,
)
from torch import Tensor

import vlmprune
from vlmprune.core.errors import UserError
from vlmprune.core.recipe import Recipe, Stage, format_method
from vlmprune.core.selectors import top_k
from vlmprune.core.signals import ClsAttention, EncoderKeys, TowerFeatures
from vlmprune.core.view import ImageView, ModelInfo
from vlmprune.methods.vision.prumerge import PruMerge
from vlmprune.methods.vision.prumerge_plus import PruMergePlus
from vlmprune.models import adapter_for

MERGING: list[PruMerge] = [PruMerge(), PruMergePlus(), PruMergePlus(attended=0.0), PruMergePlus(attended=1.0)]


class TestPruMerge:
    def naive(self, view: ImageView, kept: list[int]) -> Tensor:
        attention, rows = view["attention"], view["rows"].rows
        merged = []
        for i in kept:
            likeness = torch.cosine_similarity(view["keys"].rows[i], view["keys"].rows, dim=-1)
            near = [j for j in top_k(likeness, view.n).tolist() if j != i][:32]
            merged.append(rows[i] + sum(attention[j] * rows[j] for j in near))
        rest = [j for j in range(view.n) if j not in kept]
        return torch.stack([*merged, sum(attention[j] * rows[j] for j in rest)])

    def view(self, n: int, keep: int, info: ModelInfo = LLAVA) -> ImageView:
        view = image(PruMerge(), n, keep, info=info, seed=n)
        return ImageView(
            keep, view.slots, None, info, {**view.signals, "attention": values("noise", n).softmax(0)}, cells=view.slots
        )

    @pytest.mark.parametrize(("n", "keep"), [(100, 12), (20, 5), (2, 1), (40, 39)])
    @pytest.mark.parametrize("asked", MERGING, ids=format_method)
    def test_each_kept_token_gathers_those_like_it_and_the_last_the_rest(
        self, asked: PruMerge, n: int, keep: int
    ) -> None:
        view = self.view(n, keep)
        merged, kept = asked.select(view), asked.kept(view).tolist()
        assert merged.anchors.tolist()[:-1] == kept and merged.space == "tower"
        torch.testing.assert_close(merged.features, self.naive(view, kept), rtol=1e-4, atol=1e-5)

    def test_the_last_token_stands_where_most_of_it_comes_from(self) -> None:
        view = self.view(50, 6)
        order = top_k(view["attention"], 6).tolist()
        assert PruMerge().select(view).anchors.tolist() == order

    def test_where_positions_are_kept_tokens_stand_in_their_order(self) -> None:
        ours, theirs = (PruMerge().select(self.view(50, 6, info)) for info in (QWEN, LLAVA))
        order = theirs.anchors.argsort()
        assert torch.equal(ours.anchors, theirs.anchors[order]) and torch.equal(ours.features, theirs.features[order])

    def test_it_reads_the_last_layer_with_all_heads_as_one(self) -> None:
        assert PruMerge().needs(LLAVA) == {
            "attention": ClsAttention(-1, joined=True),
            "keys": EncoderKeys(-1, joined=True),
            "rows": TowerFeatures(),
        }

    @pytest.mark.parametrize("outliers", [1, 7, 40])
    def test_adaptive_counts_outliers(self, outliers: int) -> None:
        view = self.view(576, 100)
        view["attention"][:] = torch.linspace(0, 1e-3, 576)
        view["attention"][:outliers] = 0.01 + torch.arange(outliers) / 1e4
        found = PruMerge(adaptive=True).select(view).anchors.tolist()
        assert found[:-1] == list(range(outliers))[::-1]
        sampled = PruMergePlus(adaptive=True).kept(view).tolist()
        grid = range(0, 575, max(1, 576 // outliers // 3))
        assert sampled == list(range(outliers))[::-1] + [i for i in grid if i >= outliers]

    def test_without_an_outlier_the_default_keeps_the_strongest(self) -> None:
        view = self.view(576, 100)
        view["attention"][:] = torch.linspace(0.001, 0.002, 576)
        assert PruMerge(adaptive=True).select(view).anchors.tolist() == [575, 574]
        assert PruMerge(adaptive=True, compat="official").select(view).anchors.tolist() == [575]
        assert len(PruMergePlus(adaptive=True).select(view).features) > 3
        with pytest.raises(UserError, match="without outliers"):
            PruMergePlus(adaptive=True, compat="official").select(view)

    def test_official_needs_more_tokens_than_neighbours(self) -> None:
        assert len(PruMerge(compat="official").select(self.view(33, 9)).features) == 9
        with pytest.raises(UserError, match="needs more than 32 tokens, not 32"):
            PruMerge(compat="official").select(self.view(32, 9))

    def test_within_a_budget_half_is_sampled_evenly(self) -> None:
        view = self.view(576, 145)
        kept = PruMergePlus().kept(view).tolist()
        assert kept[:72] == top_k(view["attention"], 72).tolist()
        assert kept[72:] == sorted(kept[72:]) and len(set(kept)) == 144
        gaps = torch.tensor(kept[72:]).diff()
        assert int(gaps.min()) >= 7 and int(gaps.max()) <= 14  # 504 free tokens: every seventh, past those kept
        few = image(PruMergePlus(), 12, 7)
        few.signals = {**few.signals, "attention": torch.tensor([9.0, 0, 0, 8, 0, 0, 0, 7, 0, 0, 0, 0])}
        assert PruMergePlus().kept(few).tolist() == [0, 3, 7, 2, 6, 10]  # of 1 2 4 5 6 8 9 10 11: the 2nd, 5th, 8th
        assert len(set(PruMergePlus(attended=0.25).kept(view)[:36].tolist()) & set(kept[:36])) == 36

    def test_official_repeats_tokens_and_forgets_as_many(self) -> None:
        view, official = self.view(576, 145), PruMergePlus(compat="official")
        kept = official.kept(view)
        assert kept[72:].tolist() == list(range(4, 575, 8))
        repeated = 144 - len(kept.unique())
        assert repeated > 0
        others = [i for i in range(576) if i not in set(kept.tolist())]
        assert official.rest(kept, 576).tolist() == others[repeated:]
        assert len(official.select(view).features) == 145 and not official.exact

    def test_official_looks_for_like_tokens_in_its_list_with_the_repeated_ones_twice(self) -> None:
        view, official = self.view(576, 145), PruMergePlus(compat="official")
        kept, rows, attention = official.kept(view), view["rows"].rows, view["attention"]
        listed = torch.cat([kept, official.rest(kept, 576)])
        likeness = torch.cosine_similarity(view["keys"].rows[kept][:, None], view["keys"].rows[listed][None], dim=-1)
        likeness.fill_diagonal_(-2)  # not the entry itself, but its twin
        near = listed[likeness.topk(32, dim=1).indices]
        twice = kept.bincount()[kept] > 1
        assert bool(twice.any()) and bool((near[twice, 0] == kept[twice]).all())
        wanted = rows[kept] + (attention[near][..., None] * rows[near]).sum(1)
        torch.testing.assert_close(official.select(view).features[:-1], wanted, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize(("n", "keep"), [(576, 2), (576, 144), (256, 65)])
    def test_official_refuses_what_the_authors_code_cannot_do(self, n: int, keep: int) -> None:
        with pytest.raises(UserError, match="the authors' code"):
            PruMergePlus(compat="official").select(self.view(n, keep))
        assert len(PruMergePlus().select(self.view(n, keep)).features) == keep


@torch.no_grad()
@pytest.mark.parametrize("family", ["llava", "llava with SigLIP"])
def test_prumerge_reads_the_projections_of_the_last_layer_over_their_full_width(family: str) -> None:
    model, inputs = built(family), inputs_of(family, RAGGED)
    projected: dict[str, Tensor] = {}
    layer = adapter_for(model).encoder_layers()[-1].self_attn
    handles = [
        getattr(layer, name).register_forward_hook(
            lambda module, args, out, name=name: projected.__setitem__(name, out)
        )
        for name in ("q_proj", "k_proj")
    ]
    spy = Spy(PruMerge().needs(adapter_for(model).info))
    try:
        with vlmprune.prune(model, Recipe((Stage(spy, 0.5),))):
            model(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    query, key = projected["q_proj"], projected["k_proj"]  # [images, tokens, C], heads side by side
    attention = torch.softmax(query @ key.transpose(1, 2) / key.shape[-1] ** 0.5, dim=-1)
    assert len(spy.seen) == len(key) == 3
    cls = int(family == "llava")
    for signals, own, keys in zip(spy.seen, attention, key):
        row = own[0, 1:] if cls else own.mean(0)
        assert float((signals["attention"] - row).abs().max()) < 1e-6
        assert float((signals["keys"].rows - keys[cls:]).abs().max()) < 1e-6
