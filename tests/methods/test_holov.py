"""HoloV."""

from __future__ import annotations

import torch
from harness_views import (
    LLAVA,
    QWEN,
    WIDTH,
    merged_by,
    of_tensors,
    picked,
    shown,
    values,
)

from vlmprune.core.view import Grid, ImageView, ModelInfo
from vlmprune.methods.vision.holov import HoloV


class TestHoloV:
    def view(self, keep: int, hot: int, info: ModelInfo = LLAVA, compat: str = "paper") -> ImageView:
        """8 x 8 tokens; the attention is nearly all on the rows of one corner's 2 x 2 tokens."""
        attention = torch.full((64,), 1e-4)
        attention.view(8, 8)[:hot, :hot] = 0.2
        return of_tensors(keep, Grid(8, 8), info, features=values("noise", 64, WIDTH), attention=attention)

    def test_crops_are_squares_and_four_by_four_by_default(self) -> None:
        parts = HoloV().parts(self.view(9, 2))
        assert len(parts) == 16 and parts[0].tolist() == [0, 1, 8, 9]
        assert [len(part) for part in HoloV(crops=2).parts(self.view(9, 2))] == [32, 32]
        wide = shown(HoloV(), n=50, keep=9, grid=Grid(5, 10))
        assert HoloV(crops=8).parts(wide)[0].tolist() == [0, 1, 2, 10, 11, 12, 20, 21, 22]  # 2 x 4 crops

    def test_qwen_has_as_many_crops_as_its_budget_asks_for(self) -> None:
        assert len(HoloV().parts(shown(HoloV(), n=576, keep=64, info=QWEN, grid=Grid(24, 24)))) == 16
        assert len(HoloV().parts(shown(HoloV(), n=576, keep=192, info=QWEN, grid=Grid(24, 24)))) == 5

    def test_a_full_crop_leaves_its_rest_to_others(self) -> None:
        view = self.view(20, 2)
        kept = picked(HoloV(), view)
        assert len(kept) == 20 and {0, 1, 8, 9} <= set(kept.tolist())
        per_crop = [int(torch.isin(part, kept).sum()) for part in HoloV().parts(view)]
        assert per_crop == [4, 2, 1, 1] + [1] * 12 or (per_crop[0] == 4 and max(per_crop[1:]) - min(per_crop[1:]) <= 1)

    def test_official_cuts_runs_and_feeds_zeros(self) -> None:
        official = HoloV(crops=16, compat="official")
        view = self.view(20, 2)
        assert official.parts(view)[1].tolist() == [4, 5, 6, 7]
        merged = merged_by(official, view)
        zeros = merged.anchors < 0
        assert len(merged.features) == 20 and int(zeros.sum()) > 0
        assert (merged.features[zeros] == 0).all()
        assert torch.equal(merged.features[~zeros], view["features"][merged.anchors[~zeros]])
        assert merged.anchors[~zeros].tolist() == official.picks(view).tolist()

    def test_variety_decides_within_a_crop_but_not_how_large_its_budget_is(self) -> None:
        view = shown(HoloV(), n=576, keep=96, grid=Grid(24, 24))
        plain, varied = HoloV(alpha=0.0), HoloV(alpha=5.0)
        counts = [[int(torch.isin(part, picked(m, view)).sum()) for part in m.parts(view)] for m in (plain, varied)]
        assert counts[0] == counts[1]
        assert not torch.equal(picked(plain, view), picked(varied, view))

    def test_the_variance_includes_the_zeroed_diagonal(self) -> None:
        x, a = values("noise", 5, WIDTH), torch.rand(5, generator=torch.Generator().manual_seed(0))
        unit = x / x.norm(dim=1, keepdim=True)
        spread = []
        for i in range(5):
            row = [0.0 if i == j else float(unit[i] @ unit[j]) for j in range(5)]
            spread.append(sum((value - sum(row) / 4) ** 2 for value in row) / 4)
        variance = torch.tensor(spread)
        expected = 1000 * a + 0.09 * variance / variance.mean() * 1000 * a.mean()
        torch.testing.assert_close(HoloV().score(x, a), expected, rtol=1e-4, atol=1e-3)
