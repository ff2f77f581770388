"""V-CAST."""

from __future__ import annotations

import pytest
import torch
from harness_views import LLAVA, check_picks, of_tensors, picked, values, video
from torch import Tensor

from vlmprune.core.view import Grid
from vlmprune.methods.vision.vcast import VCast

GRID = Grid(2, 3, 5)


def per_frame(kept: Tensor, grid: Grid = GRID) -> list[int]:
    return torch.bincount(kept // (grid.rows * grid.cols), minlength=grid.frames).tolist()


def walk(*steps: tuple[float, float]) -> Tensor:
    """Frames of six equal tokens, each at one of these points."""
    return torch.tensor(steps)[:, None].expand(-1, 6, -1).reshape(-1, 2).contiguous()


def test_curvature_is_high_where_the_video_turns_back_and_low_where_it_goes_on() -> None:
    method = VCast()
    angles = torch.tensor([0.0, 0.1, 0.2, 0.1, 0.0])
    centres = torch.stack([angles.cos(), angles.sin()], dim=1)
    curvature = method.curvature(centres)
    assert curvature[0] == curvature[-1] == 1
    assert curvature[1] < 0.02 and curvature[3] < 0.02 and curvature[2] > 1.95
    assert method.weights(centres).argmax() == 2
    assert method.curvature(centres[:1]).tolist() == [1.0]
    assert method.curvature(centres[:2]).tolist() == [1.0, 1.0]


def test_a_video_that_stands_still_has_curvature_one_and_an_even_budget() -> None:
    features = walk(*[(1.0, 2.0)] * 5)
    kept = picked(VCast(), video(VCast(), 12, GRID, features))
    assert per_frame(kept) == [3, 3, 2, 2, 2]
    assert kept[:3].tolist() == [0, 1, 2]  # all alike: the first ones


def test_of_a_frame_tokens_far_from_its_mean_and_long_ones_stay() -> None:
    method = VCast()
    features = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [3.0, 0.1]])
    score = method.scores(features, torch.tensor([1.0, 0.0]))
    torch.testing.assert_close(score, torch.tensor([0.0, 0.00496 + 0.00250, 1.0, 0.00056 + 1.0]), atol=1e-4, rtol=0)


@pytest.mark.parametrize("keep", [1, 4, 5, 17, 29])
def test_every_budget_is_exact(keep: int) -> None:
    features = values("noise", GRID.size, 8)
    kept = picked(VCast(), video(VCast(), keep, GRID, features))
    check_picks(kept, keep, GRID.size)
    assert keep < GRID.frames or min(per_frame(kept)) >= 1


def test_official_raises_small_budgets_and_leaves_single_frames_whole() -> None:
    official = VCast(compat="official", floor=2)
    assert video(official, 3, GRID, values("noise", GRID.size, 8)).keep == 10
    assert video(official, 0.5, Grid(2, 3, 1), values("noise", 6, 8)).keep == 6
    assert video(VCast(), 0.5, Grid(2, 3, 1), values("noise", 6, 8)).keep == 3


def test_official_fills_one_frame_with_what_the_floor_cut_off() -> None:
    features = walk(*[(1.0, 2.0)] * 5)
    official = VCast(compat="official")
    assert per_frame(picked(official, video(official, 13, GRID, features))) == [5, 2, 2, 2, 2]


def test_an_image_is_one_frame() -> None:
    image = of_tensors(7, Grid(4, 4, 2), LLAVA, features=values("noise", 32, 8))
    check_picks(picked(VCast(), image), 7, 32)
