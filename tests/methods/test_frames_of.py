"""Budgets of frames, and which tokens show a frame."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from harness_views import LLAVA, values, video
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmprune.core.errors import UserError
from vlmprune.core.view import Grid, ImageView
from vlmprune.methods.frames import frames_of, share_out
from vlmprune.methods.vision.vidcom2 import VidCom2

GRID = Grid(2, 2, 3)


def shown(grid: Grid = GRID) -> ImageView:
    return video(VidCom2(), 0.5, grid, values("noise", grid.size, 8))


def test_each_frame_has_its_tokens_and_the_tiles_of_an_image_are_one() -> None:
    view = shown()
    assert [tokens.tolist() for tokens in frames_of(view)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    tiles = replace(view, act=replace(view.act, video=False))
    assert [tokens.tolist() for tokens in frames_of(tiles)] == [list(range(12))]


def test_a_frame_that_lost_all_its_tokens_is_not_counted() -> None:
    left = shown().only(torch.tensor([1, 2, 8, 11]), 2)
    assert [tokens.tolist() for tokens in frames_of(left)] == [[0, 1], [2, 3]]


def test_a_video_whose_frames_nobody_knows_is_refused() -> None:
    view = shown()
    unknown = replace(view, grid=None, act=replace(view.act, grid=None))
    with pytest.raises(UserError, match="vidcom2 chooses frame by frame, but vlmprune does not know the frames"):
        frames_of(unknown)
    assert len(frames_of(replace(unknown, info=LLAVA, act=replace(unknown.act, video=False)))) == 1


def test_largest_remainders_and_what_the_authors_of_v_cast_do_with_them() -> None:
    weights = torch.tensor([5.3, 2.6, 1.4, 0.7])  # of 10 tokens: 5, 2, 1, 0, and 2 left over
    assert share_out(10, weights, [9, 9, 9, 9], least=0) == [5, 3, 1, 1]
    assert share_out(10, weights, [9, 9, 9, 9], least=0, spread=False) == [5, 2, 1, 2]
    assert share_out(10, weights, [9, 9, 9, 1], least=0, spread=False) == [5, 3, 1, 1]  # full, then the next
    assert share_out(10, weights, [3, 9, 9, 9], least=0) == [3, 3, 2, 2]  # what does not fit goes round too


def test_ties_go_to_the_earlier_frame_and_few_tokens_to_the_weights() -> None:
    assert share_out(5, torch.ones(3), [4, 4, 4], least=1) == [2, 2, 1]
    assert share_out(2, torch.tensor([1.0, 9.0, 2.0]), [4, 4, 4], least=1) == [0, 2, 0]
    assert share_out(3, torch.tensor([0.0, float("nan"), 0.0]), [4, 4, 4], least=0) == [1, 1, 1]


@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    share=st.floats(0, 1),
    seed=st.integers(0, 99),
    least=st.integers(0, 3),
    spread=st.booleans(),
)
@settings(max_examples=200, deadline=None)
def test_budgets_add_up_within_the_frames(sizes: list[int], share: float, seed: int, least: int, spread: bool) -> None:
    keep = round(share * sum(sizes))
    weights = torch.rand(len(sizes), generator=torch.Generator().manual_seed(seed)) ** 4
    counts = share_out(keep, weights, sizes, least, spread)
    floors = [min(least, size) for size in sizes]
    assert sum(counts) == keep
    assert all(0 <= count <= size for count, size in zip(counts, sizes, strict=True))
    if sum(floors) <= keep:
        assert all(count >= floor for count, floor in zip(counts, floors, strict=True))
