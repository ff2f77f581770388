"""Spatial merging."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from golden_runners.spatial_merge import SpatialMerge
from harness import (
    RAGGED,
    inputs_of,
)
from harness_staged import LLAVA, run_on

from vlmprune.core.errors import UserError
from vlmprune.core.recipe import Recipe, Stage
from vlmprune.core.view import Grid, ImageView, TowerRows


def patches(side: int, seed: int = 0) -> ImageView:
    rows = torch.randn(side * side, 8, generator=torch.Generator().manual_seed(seed))
    return ImageView(
        side * side - 1, torch.arange(side * side), Grid(side, side), LLAVA, {"rows": TowerRows(rows, None)}
    )


@pytest.mark.parametrize(("side", "keep", "left"), [(6, 20, 20), (6, 19, 12), (6, 4, 4), (7, 33, 33), (8, 50, 48)])
def test_the_fewest_windows_that_meet_the_budget_are_merged(side: int, keep: int, left: int) -> None:
    view = replace(patches(side), keep=keep)
    merged = SpatialMerge().select(view)
    rows, taken = view["rows"].rows, set()
    assert len(merged.features) == left
    likeness = []
    for anchor, feature in zip(merged.anchors.tolist(), merged.features, strict=True):
        r, c = divmod(anchor, side)
        window = [(r + dr) * side + c + dc for dr in (-1, 0, 1) for dc in (-1, 0, 1)]
        if len(likeness) < (side * side - left) // 8:
            assert torch.allclose(feature, rows[window].mean(0), atol=1e-6)
            pairs = [(i, j) for i in window for j in window if i != j]
            likeness.append(sum(float(torch.cosine_similarity(rows[i], rows[j], dim=0)) for i, j in pairs) / 72)
            taken |= set(window)
        else:
            assert anchor not in taken and torch.equal(feature, rows[anchor])
            taken.add(anchor)
    assert likeness == sorted(likeness, reverse=True) and len(taken) == side * side


def test_spatial_merging_says_what_it_cannot_do() -> None:
    with pytest.raises(UserError, match="4 of 36 tokens are left: give a budget of 4 or more"):
        SpatialMerge().select(replace(patches(6), keep=3))
    with pytest.raises(UserError, match="on a grid"):
        SpatialMerge().select(replace(patches(6), grid=None))
    with pytest.raises(UserError, match="threshold=2 must be"):
        SpatialMerge(threshold=2)
    assert len(SpatialMerge(threshold=1.0).select(patches(2)).features) == 4


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "internvl"])
def test_spatial_merging_runs_before_the_llm(family: str) -> None:
    _, logits, report = run_on(family, Recipe((Stage(SpatialMerge(threshold=0.0), 1.0),)), inputs_of(family, RAGGED))
    assert bool(logits.isfinite().all())
    assert all((before - after) % 8 == 0 for before, after in report.tokens)
