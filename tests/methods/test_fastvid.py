"""FastVID."""

from __future__ import annotations

import pytest
import torch
from harness_views import LLAVA, QWEN, WIDTH, merged_by, of_tensors, values, video
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vlmprune.core.view import Grid, ImageView, Merged
from vlmprune.methods.centres import nearest, taken_up
from vlmprune.methods.segments import anchors, segments, shared_exactly, shared_qwen
from vlmprune.methods.vision.fastvid import FastVID

GRID = Grid(3, 4, 6)


def scenes() -> Tensor:
    """Six frames of 12 tokens: two scenes of three frames each."""
    means = values("noise", 2, WIDTH, seed=2).repeat_interleave(36, 0)
    return means + 0.1 * values("noise", GRID.size, WIDTH)


def shown(method: FastVID, keep: float | int) -> ImageView:
    attention = torch.rand(GRID.size, generator=torch.Generator().manual_seed(0))
    return video(method, keep, GRID, scenes(), attention=attention)


def test_a_video_is_cut_at_the_lowest_similarities_and_below_the_limit() -> None:
    similarity = torch.tensor([0.9, 0.2, 0.95, 0.5, 0.99])
    assert [len(part) for part in segments(similarity, 1, 0.6)] == [2, 2, 2]
    assert [len(part) for part in segments(similarity, 4, 0.6)] == [1, 1, 2, 2]
    assert [len(part) for part in segments(similarity, 99, 0.0)] == [1] * 6
    assert segments(similarity[:0], 8, 0.9) == [range(1)]
    assert segments(torch.ones(5), 1, 0.9) == [range(6)]


def test_the_last_frame_of_a_segment_has_centres_and_every_fourth_before_it() -> None:
    assert anchors(9, 4) == [8, 4, 0]
    part = shared_exactly(range(9), [20] * 9, 30, 0.4, 4)
    assert part.centres == [4, 0, 0, 0, 4, 0, 0, 0, 4]
    assert part.salient == [2] * 9


def test_centres_without_room_become_salient_tokens() -> None:
    part = shared_exactly(range(3), [4, 4, 4], 11, 0.4, 4)
    assert part.centres == [0, 0, 2] and part.salient == [4, 3, 2]


@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=7),
    share=st.floats(0, 1),
    context=st.floats(0.05, 1),
    stride=st.integers(1, 5),
)
@settings(max_examples=200, deadline=None)
def test_a_segment_keeps_its_budget(sizes: list[int], share: float, context: float, stride: int) -> None:
    keep = round(share * sum(sizes))
    part = shared_exactly(range(len(sizes)), sizes, keep, context, stride)
    assert sum(part.salient) + sum(part.centres) == keep
    assert all(0 <= a + b <= size for a, b, size in zip(part.salient, part.centres, sizes, strict=True))


def test_on_qwen_only_the_last_of_equal_frames_keeps_tokens() -> None:
    part = shared_qwen(range(3), 10, 4, 0.4, 4, [2])
    assert part.salient == [0, 0, 6] and part.centres == [0, 0, 4]  # 12 asked for, 10 in the frame


def test_a_centre_takes_up_the_tokens_that_are_most_like_it() -> None:
    centres, others = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[4.0, 1.0], [2.0, 1.0], [0.0, 1.0]])
    joined = nearest(centres, others)
    made = taken_up(centres, others, joined, beta=0.6)
    torch.testing.assert_close(made, torch.tensor([[0.6 + 0.4 * 3, 0.4], [0.0, 0.6 * 2 + 0.4]]))
    torch.testing.assert_close(taken_up(centres, others[:0], joined[:0], beta=0.6), centres)
    torch.testing.assert_close(taken_up(centres, others, joined, beta=0.1)[0], torch.tensor([(1.0 + 6.0) / 3, 2 / 3]))


def test_salient_tokens_stay_as_they_are_and_all_of_a_segment_goes_into_its_centres() -> None:
    method, view = FastVID(segments=2, tau=0.1), shown(FastVID(segments=2, tau=0.1), 18)
    merged = merged_by(method, view)
    plan = method.plan(torch.stack([f.mean(0) for f in scenes().split(12)]), [12] * 6, 18, QWEN)
    assert [(part.frames, part.salient, part.centres) for part in plan] == [
        (range(0, 3), [2, 2, 2], [0, 0, 3]),
        (range(3, 6), [2, 2, 2], [0, 0, 3]),
    ]
    same = (merged.features == view["features"][merged.anchors]).all(1)
    assert torch.bincount(merged.anchors // 12, minlength=6).tolist() == [2, 2, 5, 2, 2, 5]
    made = torch.bincount(merged.anchors[~same] // 12, minlength=6).tolist()
    assert made[:2] == made[3:5] == [0, 0] and 1 <= made[2] <= 3 and 1 <= made[5] <= 3


def check(merged: Merged, keep: int, n: int) -> None:
    anchors = merged.anchors.tolist()
    assert len(anchors) == keep == len(merged.features)
    assert anchors == sorted(set(anchors)) and anchors[-1] < n
    assert bool(merged.features.isfinite().all())


@pytest.mark.parametrize("keep", [1, 2, 7, 35, 71])
def test_every_budget_is_exact(keep: int) -> None:
    check(merged_by(FastVID(), shown(FastVID(), keep)), keep, GRID.size)


def test_the_authors_lose_what_does_not_divide() -> None:
    assert shown(FastVID(compat="onevision"), 0.33).keep == 3 * 6
    assert shown(FastVID(compat="qwen"), 0.01).keep == 6
    merged = merged_by(FastVID(compat="onevision", segments=2, tau=0.1), shown(FastVID(compat="onevision"), 0.45))
    assert len(merged.anchors) == 6 * 3 + 2 * 6  # 3 salient tokens a frame, 2 x 3 centres a segment


def test_an_image_is_one_segment() -> None:
    image = of_tensors(9, Grid(5, 5, 2), LLAVA, features=values("noise", 50, 8), attention=values("noise", 50).abs())
    check(merged_by(FastVID(), image), 9, 50)


def test_frames_that_an_earlier_stage_thinned_out() -> None:
    view = shown(FastVID(), 36).only(torch.arange(0, 72, 5), 6)
    check(merged_by(FastVID(), view), 6, view.n)
