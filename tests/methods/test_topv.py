"""TopV."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from golden_runners.case import acting
from harness_staged import LLAVA
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmprune.core.signals import LayerInput, MlpInput
from vlmprune.core.view import Grid, ImageView
from vlmprune.methods.decoder.topv import TopV
from vlmprune.runtime.select import choose


def transported(n: int, keep: int, grid: Grid | None = None, seed: int = 0, same: bool = False) -> ImageView:
    made = torch.Generator().manual_seed(seed)
    source, target = torch.randn(2, n, 12, generator=made)
    if same:
        source, target = torch.ones(2, n, 12)
    return ImageView(keep, torch.arange(n), grid, LLAVA, {"source": source, "target": target})


@pytest.mark.parametrize("options", [{}, {"score": "sharpness"}, {"feature": "cosine", "spatial": "plain"}], ids=str)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_topv_keeps_the_budget_and_forgets_no_part_of_the_picture(options: dict[str, Any], data: Any) -> None:
    rows, cols = data.draw(st.integers(1, 9)), data.draw(st.integers(2, 9))
    n = rows * cols
    keep = data.draw(st.integers(1, n - 1))
    view = transported(n, keep, Grid(rows, cols), seed=n, same=data.draw(st.booleans()))
    kept = TopV(**options).select(view)
    assert len(kept) == keep and torch.equal(kept, kept.unique())
    best = TopV(recover=0.0, **options).select(view)
    assert len(set(best.tolist()) & set(kept.tolist())) >= keep - round(0.2 * keep)


def test_topv_reads_what_enters_a_layer_and_what_its_mlp_reads_after_layer_two() -> None:
    assert TopV().needs(LLAVA) == {"source": LayerInput(), "target": MlpInput()}
    assert TopV().decoder_layer(LLAVA) == 3


def test_topv_by_loops() -> None:
    """The formula, a pair of tokens at a time: two frames of 2 x 3."""
    view, method = transported(12, 4, Grid(2, 3, 2)), TopV(near=0.1, width=0.3, central=0.2, eps=0.1)
    source, target = view["source"], view["target"]
    places = [(f, r, c) for f in range(2) for r in range(2) for c in range(3)]
    apart = [[float((x - y).norm()) for y in target] for x in source]
    scale = sum(map(sum, apart)) / 144
    cost = torch.zeros(12, 12)
    for i, (f, r, c) in enumerate(places):
        central = math.hypot(r - 0.5, c - 1) / (math.sqrt(5) / 2)
        for j, (g, s, d) in enumerate(places):
            square = ((r - s) ** 2 + (c - d) ** 2) / 5 + ((f - g) / 2) ** 2
            cost[i, j] = apart[i][j] / scale + 0.1 * (1 - math.exp(-square / (2 * 0.3**2))) + 0.2 * central
    assert torch.allclose(method.cost(view), cost, atol=1e-5)
    given = (-cost / 0.1).exp()
    assert torch.allclose(method.scores(view), (given / given.sum(0)).mean(1), atol=1e-6)
    for _ in range(method.iterations):
        given = given / given.sum(1, keepdim=True)
        given = given / given.sum(0)
    sharp = replace(method, score="sharpness").scores(view)
    assert torch.allclose(sharp.exp(), given.amax(1), atol=1e-5)


def test_topv_does_not_depend_on_the_order_of_the_tokens() -> None:
    view, order = transported(48, 12, Grid(6, 8)), torch.randperm(48, generator=torch.Generator().manual_seed(1))
    shuffled = view.part(order, 12, {name: value[order] for name, value in view.signals.items()})
    for method in (TopV(), TopV(score="sharpness"), TopV(feature="cosine")):
        assert torch.allclose(method.scores(view)[order], method.scores(shuffled), atol=1e-6)


def test_topv_of_alike_tokens_is_central_and_spread() -> None:
    view = transported(81, 20, Grid(9, 9), same=True)
    central = TopV(feature="cosine", near=0.0, central=1.0, recover=0.0).select(replace(view, keep=9))
    assert set(central.tolist()) == {r * 9 + c for r in (3, 4, 5) for c in (3, 4, 5)}
    spread = TopV(feature="cosine", near=0.0, central=0.0, recover=1.0).select(view)
    assert spread.tolist() == list(range(2, 82, 4))


def test_topv_costs_are_bounded_and_frames_are_apart() -> None:
    view = transported(48, 12, Grid(4, 4, 3))
    cost = TopV(feature="cosine", spatial="plain", near=0.5, central=0.1).cost(replace(view, grid=Grid(6, 8)))
    assert cost.min() >= 0 and cost.max() <= 2.6 + 1e-6
    flat = TopV(feature="cosine", central=0.0).cost(transported(48, 12, Grid(4, 4, 3), same=True))
    assert flat[0, 16] > flat[0, 0] and torch.allclose(flat[0, 16], flat[16, 32])
    assert len(TopV().select(transported(10, 3))) == 3  # no grid


def test_topv_drops_slots_without_a_place_first() -> None:
    view = transported(10, 4, Grid(3, 3))
    view.cells = torch.tensor([0, 1, 2, -1, 3, 4, 5, 6, 7, 8])
    assert 3 not in choose(acting(TopV(), 4, view)).tolist()  # type: ignore[union-attr]
