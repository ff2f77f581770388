"""EVS."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from harness import RAGGED, built, inputs_of
from harness_views import QWEN, image, picked, values, video
from torch import Tensor

import vlmprune
from vlmprune.core.errors import UserError
from vlmprune.core.plan import acts_of
from vlmprune.core.report import RunReport
from vlmprune.core.view import Grid
from vlmprune.methods.vision.evs import EVS

GRID = Grid(2, 2, 3)


def moving(*places: int) -> Tensor:
    """Three frames of one picture of 2 x 2 tokens, of which these show something else."""
    features = values("noise", 4, 8).repeat(3, 1)
    for number, place in enumerate(places):
        features[place] = values("noise", 1, 8, seed=5 + number)
    return features


def test_the_first_frame_stays_and_what_changes() -> None:
    # a token that changes once also changes back in the next frame
    assert picked(EVS(), video(EVS(), 6, GRID, moving(5))).tolist() == [0, 1, 2, 3, 5, 9]
    assert picked(EVS(), video(EVS(), 5, GRID, moving(10))).tolist() == [0, 1, 2, 3, 10]


def test_a_video_in_which_nothing_moves_keeps_its_first_tokens() -> None:
    still = values("noise", 4, 8).round().repeat(3, 1)
    assert picked(EVS(score_dtype="bfloat16"), video(EVS(), 7, GRID, still)).tolist() == [0, 1, 2, 3, 4, 5, 6]


def test_the_budget_is_at_least_one_frame_and_an_image_stays_whole() -> None:
    assert video(EVS(), 1, GRID, moving()).keep == 4
    assert video(EVS(), 0.5, GRID, moving()).keep == 6
    assert video(EVS(), 0.3, Grid(2, 2, 1), moving()).keep == 4
    (act,) = acts_of(EVS(), 0.3, QWEN)
    tiles = act.of(12, GRID, video=False)
    assert tiles.budget(12, 12) == 12
    assert act.method.left(act, 12, 12) is None


def test_vllm_rounds_down() -> None:
    grid = Grid(2, 10, 10)
    assert video(EVS(compat="vllm"), 1 - 0.9, grid, values("noise", 200, 4)).keep == 20  # one frame; else 19
    assert video(EVS(compat="vllm"), 1 - 0.6, Grid(1, 5, 10), values("noise", 50, 4)).keep == 20
    assert video(EVS(compat="vllm"), 0.33, GRID, moving()).keep == 4


def test_a_place_that_an_earlier_stage_dropped_counts_as_a_change_of_one() -> None:
    left = torch.tensor([0, 1, 3, 4, 5, 6, 8, 9])
    view = video(EVS(), 6, GRID, moving()).only(left, 4)
    score = EVS().score(view)
    assert score[:3].tolist() == [255.0] * 3
    torch.testing.assert_close(score[3:], torch.tensor([0.0, 0.0, 1.0, 0.0, 0.0]), atol=1e-6, rtol=0)


def test_frames_by_themselves_are_refused() -> None:
    with pytest.raises(UserError, match="per"):
        EVS(per="frame")


def test_a_video_without_known_frames_is_refused() -> None:
    view = video(EVS(), 6, GRID, moving())
    with pytest.raises(UserError, match="does not know the frames"):
        replace(view.act, grid=None).budget(12, 12)


def test_a_view_made_by_hand_is_an_image() -> None:
    assert EVS().score(image(EVS(), 12, 4)).tolist() == [255.0] * 12


def test_images_beside_a_video_stay_whole() -> None:
    """The report says which is which."""
    with torch.no_grad(), vlmprune.prune(built("qwen2_5_vl"), "evs", keep=0.3) as session:
        built("qwen2_5_vl")(**inputs_of("qwen2_5_vl", RAGGED))
    for videos, (before, after) in zip(session.last.videos, session.last.tokens, strict=True):
        assert not any(videos) and before == after


def test_on_a_model_every_video_keeps_its_first_frame_and_the_report_tells_frames_apart() -> None:
    family = "qwen3_vl video"
    with torch.no_grad(), vlmprune.prune(built(family), "evs", keep=0.6) as session:
        built(family)(**inputs_of(family, RAGGED))
    report = session.last
    for row, seeds in enumerate(RAGGED):
        for number in range(len(seeds)):
            frames, grid = report.by_frame(row, number), report.grids[row][number]
            assert report.videos[row][number] and grid is not None
            assert torch.equal(torch.cat(frames), report.kept[row][number])
            size = grid.rows * grid.cols
            assert frames[0].tolist() == list(range(size))
            assert all(set((own // size).tolist()) <= {number} for number, own in enumerate(frames))


def test_frames_of_slots_without_a_grid_are_refused() -> None:
    with pytest.raises(UserError, match="form no grid"):
        RunReport(kept=[[torch.arange(3)]], grids=[[None]]).by_frame()
