"""Downsampling."""

from __future__ import annotations

import math

import pytest
from harness import built, inputs_of
from harness_views import LLAVA, QWEN
from hypothesis import given, settings
from hypothesis import strategies as st

import vlmprune
from vlmprune import UserError
from vlmprune.core.method import PixelMethod
from vlmprune.core.view import Grid
from vlmprune.methods.pixels.downsample import Downsample


class TestDownsample:
    def test_a_square_stays_square(self) -> None:
        assert Downsample().resize(Grid(14, 14), 65) == Grid(8, 8)
        assert Downsample().resize(Grid(14, 14), 43) == Grid(6, 7)
        assert Downsample().resize(Grid(24, 24), 64) == Grid(8, 8)

    def test_a_wide_image_stays_wide_and_a_tall_one_tall(self) -> None:
        assert Downsample().resize(Grid(10, 20), 50) == Grid(5, 10)
        assert Downsample().resize(Grid(20, 10), 50) == Grid(10, 5)
        assert Downsample().resize(Grid(1, 40), 10) == Grid(1, 10)

    def test_a_video_shares_the_budget_between_its_frames(self) -> None:
        assert Downsample().resize(Grid(14, 14, 4), 260) == Grid(8, 8, 4)
        assert Downsample().resize(Grid(14, 14, 4), 3) == Grid(1, 1, 4)

    @given(rows=st.integers(1, 24), cols=st.integers(1, 24), keep=st.integers(1, 600))
    @settings(max_examples=200, deadline=None)
    def test_it_is_the_best_of_all_grids_that_fit(self, rows: int, cols: int, keep: int) -> None:
        grid = Downsample().resize(Grid(rows, cols), keep)
        assert 1 <= grid.rows <= rows and 1 <= grid.cols <= cols and grid.size <= keep
        if keep >= rows * cols:
            assert grid == Grid(rows, cols)
            return
        height = math.sqrt(keep * rows / cols)
        width = keep / height

        def misfit(r: int, c: int) -> float:
            return abs(math.log(r / height)) + abs(math.log(c / width))

        best = min(misfit(r, c) for r in range(1, rows + 1) for c in range(1, cols + 1) if r * c <= keep)
        assert misfit(grid.rows, grid.cols) <= best + 1e-9


def test_pixel_methods_number_positions_as_a_smaller_image_is() -> None:
    assert isinstance(Downsample(), PixelMethod)
    assert Downsample().positions(QWEN) == Downsample().positions(LLAVA) == "compact"


@pytest.mark.parametrize(
    ("family", "reason"),
    [
        ("gemma3", "encoder of gemma3 gets pictures of one size only"),
        ("gemma4", "vlmprune cannot resize pictures for gemma4"),  # whose encoder takes any size
        ("llava_next", "this one has slots outside"),
    ],
)
def test_who_cannot_resize_is_told_why(family: str, reason: str) -> None:
    with vlmprune.prune(built(family), "downsample:0.3"), pytest.raises(UserError, match=reason):
        built(family)(**inputs_of(family, [[0]]))
