"""HiPrune."""

from __future__ import annotations

import pytest
import torch
from harness_views import LLAVA, QWEN, image
from torch import Tensor

from vlmprune.core.errors import UserError
from vlmprune.core.needs import USED, Depth
from vlmprune.core.selectors import top_k
from vlmprune.core.signals import (
    ReceivedAttention,
)
from vlmprune.core.view import Grid, ImageView
from vlmprune.methods.vision.hiprune import HiPrune


class TestHiPrune:
    def view(self, anchor: int, keep: int, grid: Grid, slots: Tensor | None = None) -> ImageView:
        """One anchor, and registers preferred from the end of the image."""
        n = grid.size if slots is None else len(slots)
        middle, deep = torch.zeros(n), torch.arange(n).float()
        middle[anchor] = 1
        slots = torch.arange(n) if slots is None else slots
        return ImageView(keep, slots, grid, LLAVA, {"object": middle, "deep": deep})

    @pytest.mark.parametrize(
        ("anchor", "near"),
        [
            (5, [1, 4, 5, 6, 9]),  # inside a 3 x 4 grid
            (7, [3, 6, 7, 8, 11]),  # the end of a row neighbours the start of the next
            (0, [0, 1, 4]),  # beyond the image counts as its first cell
            (2, [0, 1, 2, 3, 6]),
            (10, [6, 9, 10, 11]),
            (11, [7, 10, 11]),
        ],
    )
    def test_neighbours_are_found_by_arithmetic(self, anchor: int, near: list[int]) -> None:
        got, registers = HiPrune(alpha=0.8).parts(self.view(anchor, 6, Grid(3, 4)))
        assert got.tolist() == near
        assert registers.tolist() == [t for t in range(11, -1, -1) if t not in near][: 6 - len(near)]

    def test_dropped_tokens_are_no_neighbours(self) -> None:
        slots = torch.tensor([0, 1, 5, 6, 9, 11])
        got, registers = HiPrune(alpha=1).parts(self.view(2, 5, Grid(3, 4), slots))
        assert got.tolist() == [1, 2, 3, 4]  # slots 1, 5, 6, 9; slot 4 is gone
        assert registers.tolist() == [5]

    def test_frames_of_a_video_are_no_neighbours_of_each_other(self) -> None:
        got, _ = HiPrune(alpha=0.5).parts(self.view(9, 10, Grid(3, 3, 2)))
        assert got.tolist() == [9, 10, 12]

    def test_without_a_grid_only_left_and_right_are_neighbours(self) -> None:
        view = self.view(5, 6, Grid(3, 4))
        view.grid = None
        assert HiPrune(alpha=0.8).parts(view)[0].tolist() == [4, 5, 6]

    def test_anchors_come_first_where_neighbours_exceed_the_budget(self) -> None:
        view = image(HiPrune(), 64, 13, grid=Grid(8, 8))
        near, registers = HiPrune(alpha=1).parts(view)
        assert set(top_k(view["object"], 3).tolist()) <= set(near.tolist())
        assert len(near) + len(registers) == 13

    def test_official_refuses_neighbours_beyond_the_budget(self) -> None:
        view = self.view(9, 5, Grid(4, 5))  # an anchor with its four neighbours fits
        assert len(HiPrune(alpha=1, compat="official").select(view)) == 5
        view.keep = 4
        with pytest.raises(UserError, match="fails on 5 anchors and neighbours in a budget of 4"):
            HiPrune(alpha=1, compat="official").select(view)
        assert len(HiPrune(alpha=1).select(view)) == 4

    def test_no_anchor_below_half_a_neighbourhood(self) -> None:
        view = image(HiPrune(), 64, 25, grid=Grid(8, 8))
        assert torch.equal(HiPrune().select(view), top_k(view["deep"], 25).sort().values)  # round(0.5) is 0

    def test_the_object_layer_is_the_papers_at_every_depth(self) -> None:
        assert HiPrune().needs(LLAVA) == {"object": ReceivedAttention(Depth(9, 24)), "deep": ReceivedAttention(USED)}
        assert HiPrune().needs(QWEN)["object"] == ReceivedAttention(Depth(16, 32))
        assert Depth(9, 24).index(24) == 8 and Depth(9, 24).index(5) == 1
        assert Depth(16, 32).index(32, (7, 15, 23, 31)) == 15
        assert HiPrune(object_layer=4).needs(LLAVA)["object"] == ReceivedAttention(4)
        with pytest.raises(UserError, match="encoder's layers, 0 to 23"):
            HiPrune(object_layer=24).needs(LLAVA)

    def test_official_loses_tokens_where_sums_exceed_one(self) -> None:
        view = image(HiPrune(), 64, 30, info=QWEN, grid=Grid(8, 8))
        view["deep"][top_k(view["object"], 3)] = 50.0  # the anchors are also what the last layer looks at
        official = HiPrune(alpha=0.5, compat="official")
        assert len(official.select(view)) < 30 and not official.exact
        assert len(HiPrune(alpha=0.5).select(view)) == 30
