"""VidCom2."""

from __future__ import annotations

import pytest
import torch
from harness_views import LLAVA, check_picks, of_tensors, picked, values, video

from vlmprune.core.view import Grid
from vlmprune.methods.frames import frames_of
from vlmprune.methods.vision.vidcom2 import VidCom2

GRID = Grid(3, 4, 4)


def per_frame(kept: torch.Tensor, grid: Grid = GRID) -> list[int]:
    return torch.bincount(kept // (grid.rows * grid.cols), minlength=grid.frames).tolist()


def odd_frame() -> torch.Tensor:
    """Four frames of 12 tokens, of which the third shows something else."""
    common, other = values("noise", 2, 16, seed=1)
    features = common + 0.05 * values("noise", GRID.size, 16)
    features[24:36] += other
    return features


def test_the_frame_that_stands_out_gets_more() -> None:
    counts = per_frame(picked(VidCom2(), video(VidCom2(), 16, GRID, odd_frame())))
    assert counts == [3, 3, 7, 3]  # of 16: 1 - 1/4 of a quarter each, and 2 - 1/4 for the third


def test_in_a_frame_the_tokens_unlike_the_rest_stay() -> None:
    features = values("one line", 1, 16).repeat(GRID.size, 1) + 1e-3 * values("noise", GRID.size, 16)
    odd = torch.tensor([5, 17, 30, 47])
    features[odd] += values("noise", 4, 16, seed=3)
    assert picked(VidCom2(), video(VidCom2(), 4, GRID, features)).tolist() == odd.tolist()


@pytest.mark.parametrize("keep", [1, 2, 4, 5, 23, 47])
def test_every_budget_is_exact_and_no_frame_is_empty_if_it_suffices(keep: int) -> None:
    view = video(VidCom2(), keep, GRID, odd_frame())
    kept = picked(VidCom2(), view)
    check_picks(kept, keep, GRID.size)
    assert keep < 4 or min(per_frame(kept)) >= 1


def test_frames_all_alike_share_evenly_and_keep_the_first_tokens() -> None:
    view = video(VidCom2(), 9, GRID, torch.ones(GRID.size, 8))
    assert picked(VidCom2(), view).tolist() == [0, 1, 2, 12, 13, 24, 25, 36, 37]


def test_the_authors_lose_budget_above_one_half_and_vllm_fills_it_up() -> None:
    shares = [picked(VidCom2(compat=name), video(VidCom2(compat=name), 0.75, GRID, odd_frame()))
              for name in ("official", "vllm", "paper")]  # fmt: skip
    assert [len(kept) for kept in shares] == [12 + 3 * 7, 36, 36]
    assert set(shares[0].tolist()) < set(shares[1].tolist())


def test_vllm_keeps_a_token_for_each_frame_and_rounds_down() -> None:
    assert video(VidCom2(compat="vllm"), 0.01, GRID, odd_frame()).keep == 4
    assert video(VidCom2(compat="vllm"), 0.33, GRID, odd_frame()).keep == 15
    view = video(VidCom2(compat="vllm"), 5, GRID, odd_frame())
    check_picks(picked(VidCom2(compat="vllm"), view), 5, GRID.size)


def test_an_image_is_one_frame_whose_tiles_compete() -> None:
    image = of_tensors(12, GRID, LLAVA, features=odd_frame())
    assert len(frames_of(image)) == 1
    kept = picked(VidCom2(), image)
    check_picks(kept, 12, GRID.size)
    assert per_frame(kept) != [3, 3, 3, 3]


def test_frames_that_an_earlier_stage_thinned_out() -> None:
    view = video(VidCom2(), 20, GRID, odd_frame()).only(torch.arange(0, 48, 3)[2:], 9)
    kept = picked(VidCom2(), view)
    check_picks(kept, 9, view.n)
