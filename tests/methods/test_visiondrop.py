"""VisionDrop."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from harness_staged import LLAVA, counts_of, layers_of
from harness_views import QWEN, image, values
from torch import Tensor

import vlmprune
from vlmprune.core.plan import acts_of
from vlmprune.core.view import Grid, ImageView, Merged, ModelInfo, Tokens
from vlmprune.methods.hybrid.visiondrop import VisionDrop
from vlmprune.methods.vision.visionzip import VisionZip
from vlmprune.runtime.select import choose


def inside(n: int, keep: int, kind: str = "noise", info: ModelInfo = LLAVA, score: Tensor | None = None) -> ImageView:
    """An image as the first act inside the LLM sees it."""
    keys, states = values(kind, n + 3, 8, seed=1), values(kind, n + 3, 6, seed=2)
    signals = {
        "visual": values("noise", n, 1)[:, 0].abs() if score is None else score,
        "rotated": Tokens(keys[:n], keys[n:]),
        "states": Tokens(states[:n], states[n:]),
    }
    return ImageView(keep, torch.arange(n), None, info, signals, act=acts_of(VisionDrop(), keep, info)[1])


def test_the_published_counts_are_an_average_of_32() -> None:
    assert layers_of(VisionDrop()) == [None, 8, 16, 24]
    assert counts_of(VisionDrop(), 32, 576) == counts_of(VisionDrop(), 32 / 576, 576) == [48, 35, 26, 19]
    zip_, inner = VisionZip(contextual=VisionDrop().contextual), [5, 4, 3]
    assert zip_.contextual_of(48) == 6 and [zip_.contextual_of(k) for k in (35, 26, 19)] == inner


@pytest.mark.parametrize("keep", [0.05, 1 / 3, 0.6, 2 / 3, 0.8, 0.97, 1.0])
def test_other_budgets_are_met_on_average_and_never_grow(keep: float) -> None:
    counts = counts_of(VisionDrop(), keep, 2304)
    assert counts == sorted(counts, reverse=True) and counts[0] <= 2304
    assert abs(sum(counts) / 4 - keep * 2304) < 1


def test_one_token_stays_one_token() -> None:
    assert counts_of(VisionDrop(), 1, 576) == [1, 1, 1, 1]
    merged = VisionDrop().select(inside(5, 1))
    assert merged.anchors.tolist() == [int(inside(5, 1)["visual"].argmax())]


def test_more_than_three_layers_have_no_budgets() -> None:
    with pytest.raises(vlmprune.UserError, match="more than the three"):
        VisionDrop(layers=(1, 2, 3, 4))
    assert counts_of(VisionDrop(layers=(8,)), 32, 576) == [48, 35]


def test_before_the_llm_it_is_visionzip() -> None:
    view = image(VisionZip(), 60, 20)
    view = replace(view, act=acts_of(VisionDrop(contextual=4), 20, LLAVA)[0])
    due, got = VisionZip(contextual=4).select(view), VisionDrop(contextual=4).select(view)
    assert torch.equal(due.features, got.features) and torch.equal(due.anchors, got.anchors) and got.space == "tower"


def test_dominant_by_score_then_targets_with_the_mean_of_their_members() -> None:
    score = torch.tensor([0.1, 0.9, 0.2, 0.2, 0.8, 0.3, 0.0, 0.2])
    view = inside(8, 4, score=score)
    merged = VisionDrop(contextual=2).select(view)
    assert merged.anchors.tolist() == [1, 4, 0, 5]  # 0, 2, 3, 5, 6, 7 are left, of which every third is a target
    assert merged.unchanged is not None and merged.unchanged.tolist() == [True, True, False, False]
    keys, states = view["rotated"].visual, view["states"].visual
    groups: dict[int, list[int]] = {0: [], 5: []}
    for token in (2, 3, 6, 7):
        likeness = torch.cosine_similarity(keys[token], keys[[0, 5]], dim=-1)
        groups[(0, 5)[int(likeness.argmax())]].append(token)
    for place, target in ((2, 0), (3, 5)):
        members = states[groups[target]]
        due = states[target] + (members.mean(0) if len(members) else 0)
        torch.testing.assert_close(merged.features[place], due)


def test_where_positions_are_kept_tokens_are_in_their_order() -> None:
    merged = VisionDrop(contextual=2).select(inside(8, 4, info=QWEN))
    assert merged.anchors.tolist() == sorted(merged.anchors.tolist())
    assert VisionDrop().positions(QWEN) == "original" and VisionDrop().positions(LLAVA) == "compact"


@pytest.mark.parametrize("kind", ["ties", "constant", "zero", "duplicates"])
@pytest.mark.parametrize("keep", [1, 2, 7, 11])
def test_any_keys_and_any_budget(kind: str, keep: int) -> None:
    merged = VisionDrop(contextual=3).select(inside(12, keep, kind))
    assert len(set(merged.anchors.tolist())) == keep and merged.features.isfinite().all()


def test_of_equal_scores_the_first_are_dominant() -> None:
    merged = VisionDrop(contextual=0).select(inside(6, 3, score=torch.ones(6)))
    assert merged.anchors.tolist() == [0, 1, 2]


def test_frames_compete_apart_before_the_llm_and_together_inside() -> None:
    first, second, *_ = acts_of(VisionDrop(), 0.3, ModelInfo("video_llava", 24, 32, True))
    assert (first.pool, first.sees_every_slot) == ("frame", False)
    assert (second.pool, second.sees_every_slot) == ("image", True)
    view = inside(12, 4, info=QWEN, score=torch.tensor([0.0] * 6 + [1.0] * 6))
    view = replace(view, grid=Grid(2, 3, 2), act=acts_of(VisionDrop(contextual=0), 4, QWEN)[1])
    chosen = choose(view)
    assert isinstance(chosen, Merged) and chosen.anchors.tolist() == [6, 7, 8, 9]
