"""Average pooling."""

from __future__ import annotations

import pytest
import torch
from harness_views import (
    WIDTH,
    merged_by,
    of_tensors,
    values,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from vlmprune.core.view import Grid
from vlmprune.methods.vision.pool import Pool


class TestPool:
    @pytest.mark.parametrize(("rows", "cols", "side"), [(24, 24, 12), (24, 24, 5), (16, 16, 7), (9, 9, 8)])
    @pytest.mark.parametrize("mode", ["avg", "max"])
    def test_a_square_budget_of_a_square_is_adaptive_pooling(self, rows: int, cols: int, side: int, mode: str) -> None:
        x = values("noise", rows * cols, WIDTH)
        merged = merged_by(Pool(mode=mode), of_tensors(side * side, Grid(rows, cols), features=x))
        shrink = nn.functional.adaptive_avg_pool2d if mode == "avg" else nn.functional.adaptive_max_pool2d
        expected = shrink(x.view(rows, cols, WIDTH).permute(2, 0, 1), (side, side)).flatten(1).T
        torch.testing.assert_close(merged.features, expected)

    def test_a_picture_keeps_its_shape(self) -> None:
        assert Pool().strips(10, 20, 50) == [10] * 5
        assert Pool().strips(20, 10, 50) == [5] * 10
        assert Pool().strips(24, 24, 67) == [8, 8, 9, 8, 8, 9, 8, 9]
        assert Pool().strips(1, 40, 13) == [13] and Pool().strips(40, 1, 13) == [1] * 13

    @given(rows=st.integers(1, 12), cols=st.integers(1, 12), data=st.data())
    @settings(max_examples=100, deadline=None)
    def test_strips_add_up_and_fit(self, rows: int, cols: int, data: st.DataObject) -> None:
        keep = data.draw(st.integers(1, rows * cols))
        strips = Pool().strips(rows, cols, keep)
        assert sum(strips) == keep and len(strips) <= rows and max(strips) <= cols
        assert max(strips) - min(strips) <= 1

    def test_every_token_counts_and_the_middle_lends_its_place(self) -> None:
        x = torch.arange(36.0)[:, None].expand(36, WIDTH)
        merged = merged_by(Pool(), of_tensors(4, Grid(6, 6), features=x))
        assert merged.features[:, 0].tolist() == [7, 10, 25, 28]
        assert merged.anchors.tolist() == [7, 10, 25, 28]

    def test_a_tile_cut_by_unpadding_is_a_smaller_grid(self) -> None:
        x = values("noise", 16, WIDTH)
        view = of_tensors(4, Grid(4, 4, 3), features=x[4:12])
        view.cells = torch.arange(16 + 4, 16 + 12)  # the middle rows of the second tile
        merged = merged_by(Pool(), view)
        torch.testing.assert_close(merged.features, torch.stack([x[[i, i + 4]].mean(0) for i in range(4, 8)]))

    def test_holes_leave_runs_of_tokens(self) -> None:
        x = values("noise", 10, WIDTH)
        view = of_tensors(5, Grid(4, 4), features=x)
        view.cells = torch.tensor([0, 1, 3, 4, 6, 7, 9, 10, 13, 15])
        torch.testing.assert_close(merged_by(Pool(), view).features, x.view(5, 2, WIDTH).mean(1))

    def test_uniprune_makes_a_square_of_any_picture(self) -> None:
        uniprune = Pool(compat="uniprune")
        assert uniprune.strips(12, 25, 16) == uniprune.strips(25, 12, 18) == [4] * 4
        assert not uniprune.exact
