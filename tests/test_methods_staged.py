"""PyramidDrop, SparseVLM, AdaptInfer, VTW: what each owes its caller, and what they do on models."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from harness import RAGGED, built, inputs_of
from harness_staged import (
    ALL,
    HYBRID,
    LLAVA,
    QWEN2,
    counts_of,
    layers_of,
    run_on,
    shown_inside,
)
from hypothesis import given, settings
from hypothesis import strategies as st

import vlmprune
from vlmprune.core.method import Method
from vlmprune.core.recipe import Recipe, Stage, format_method
from vlmprune.core.registry import METHODS
from vlmprune.core.view import Merged, ModelInfo
from vlmprune.methods.decoder.adaptinfer import AdaptInfer
from vlmprune.methods.decoder.pyramiddrop import PyramidDrop
from vlmprune.methods.decoder.sparsevlm import SparseVLM
from vlmprune.methods.decoder.staged import Staged, spread
from vlmprune.methods.decoder.vtw import VTW
from vlmprune.models import adapter_for


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@given(st.sampled_from(["1.5", "+", "adaptinfer", "pyramiddrop"]), st.floats(0.001, 0.999), st.integers(1, 1500))
@settings(max_examples=100, deadline=None)
def test_counts_fall_from_act_to_act_and_rise_with_the_budget(name: str, keep: float, total: int) -> None:
    method: Method = {"adaptinfer": AdaptInfer(), "pyramiddrop": PyramidDrop()}.get(name) or SparseVLM(version=name)
    kept = counts_of(method, keep, total)
    assert kept == sorted(kept, reverse=True) and all(method.least <= k <= total for k in kept)
    assert counts_of(method, 1.0, total) == [total] * 3
    if name in ("adaptinfer", "pyramiddrop"):  # SparseVLM's lists do not all rise: 303 for 128, then 300 for 192
        assert all(a <= b for a, b in zip(kept, counts_of(method, min(1.0, keep * 1.3), total), strict=True))


def test_layers_spread_over_other_depths() -> None:
    assert spread((3, 7, 16), 32, QWEN2) == (3, 6, 14)
    assert [spread((3, 7, 16), 32, ModelInfo("llava", 1, depth, True)) for depth in (1, 2, 3, 5)] == [
        (), (1,), (1, 2), (1, 2, 3),
    ]  # fmt: skip
    # only every fourth layer has an attention map: read before the cut, or at the layer ahead
    assert spread((3, 7, 16), 32, HYBRID) == (4, 8, 16)
    assert spread((8, 16, 24), 32, HYBRID, ahead=True) == (7, 15, 23)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda: PyramidDrop(layers=(8, 4)), "increasing order"),
        (lambda: PyramidDrop(layers=()), "increasing order"),
        (lambda: PyramidDrop(layers=4), "increasing order"),  # type: ignore[arg-type]
        (lambda: PyramidDrop(layers=(0, 4)), "at least 1"),
        (lambda: PyramidDrop(average="yes"), "True or False"),  # type: ignore[arg-type]
        (lambda: SparseVLM(version="2"), "'1.5' or '1.0' or '\\+'"),
        (lambda: SparseVLM(gravity_eps=-1.0), "number from 0"),
        (lambda: SparseVLM(layers=(1, 2, 3, 4)).acts(LLAVA, 0.5), "no schedule for as many as 4"),
        (lambda: PyramidDrop(layers=(8, 50)).acts(LLAVA, 0.5), "before decoder layer 50"),
        (lambda: AdaptInfer().acts(ModelInfo("llava", 1, 1, True), 0.5), "no decoder layer whose attention"),
    ],
)
def test_wrong_options_are_one_sentence(wrong: Any, says: str) -> None:
    with pytest.raises(vlmprune.UserError, match=says) as error:
        wrong()
    assert "\n" not in str(error.value)


def test_recipes_read_as_they_are_written(monkeypatch: pytest.MonkeyPatch) -> None:
    for cls in (PyramidDrop, SparseVLM, AdaptInfer, VTW):
        monkeypatch.setitem(METHODS._targets, cls.name, f"{cls.__module__}:{cls.__name__}")
    assert vlmprune.recipe("pyramiddrop@8,16,24:0.5").stages == (Stage(PyramidDrop(layers=(8, 16, 24)), 0.5),)
    assert vlmprune.recipe("sparsevlm(version=1.0)@3:64").stages == (Stage(SparseVLM(version="1.0", layers=(3,)), 64),)
    assert vlmprune.recipe("vtw@16").stages == (Stage(VTW(layer=16), 1.0),)
    for text in ("pyramiddrop(average=True)@2,8:0.2", "sparsevlm(version=+):0.1", "adaptinfer:64", "vtw@16", "vtw:0.5"):
        assert str(vlmprune.recipe(text)) == text
        assert format_method(vlmprune.recipe(text).stages[0].method) == text.split(":")[0]


STAGED = [PyramidDrop(), AdaptInfer(), SparseVLM(), SparseVLM(version="1.0"), SparseVLM(version="+")]


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(STAGED), st.integers(2, 60), st.integers(0, 9999), st.integers(0, 7), st.booleans(), st.data())
def test_any_image_gives_distinct_sorted_finite_tokens(
    method: Staged, n: int, seed: int, words: int, alike: bool, data: st.DataObject
) -> None:
    keep = data.draw(st.integers(max(1, method.least), n - 1))
    view = shown_inside(method, n, keep, seed, words, alike)
    chosen, again = method.select(view), method.select(view)
    if isinstance(chosen, Merged):
        assert torch.equal(chosen.features, again.features) and bool(chosen.features.isfinite().all())
        assert chosen.unchanged is not None
        kept, made = chosen.anchors[chosen.unchanged], chosen.anchors[~chosen.unchanged]
        recycled = int(0.3 * (n - len(kept))) + 1
        assert len(made) == int(recycled / 10) + 1 and len(chosen.anchors.unique()) == len(chosen.anchors) <= n
        assert torch.equal(chosen.features[: len(kept)], view["states"].visual[kept])
        assert bool((chosen.unchanged.long().diff() <= 0).all())  # the kept first
    else:
        assert torch.equal(chosen, again)
        kept = chosen
    assert kept.tolist() == sorted(set(kept.tolist()))
    if getattr(method, "version", None) != "1.0":
        assert len(kept) == keep
    else:
        assert 1 <= len(kept) <= n


def test_a_layer_whose_attention_cannot_be_read_is_refused() -> None:
    """Tiny Qwen3.5 has attention maps at layers 1 and 3: by default the acts stand where these are read."""
    info = adapter_for(built("qwen3_5")).info
    assert layers_of(PyramidDrop(), info) == [1, 3] and layers_of(SparseVLM(), info) == [2]
    for method in (SparseVLM(layers=(1,)), PyramidDrop(layers=(2,))):
        with pytest.raises(vlmprune.UserError, match="linear attention"):  # before anything runs
            vlmprune.prune(built("qwen3_5"), Recipe((Stage(method, 0.3),)))


@pytest.mark.parametrize("name", ["sparsevlm", "adaptinfer", "pyramiddrop"])
def test_after_a_stage_that_merges_and_frame_by_frame(name: str) -> None:
    stage = ALL[name]
    recipe = Recipe((*vlmprune.recipe("visionzip:12").stages, stage))
    _, _, report = run_on("llava", recipe, inputs_of("llava", RAGGED))
    assert [before for before, _ in report.tokens] == [72, 36] and report.tokens[1][1] < 12
    per_frame: Any = type(stage.method)(per="frame")
    family = "qwen2_5_vl video"
    _, _, report = run_on(family, Recipe((Stage(per_frame, stage.keep),)), inputs_of(family, [[0], [1]]))
    for (kept,), (grid,) in zip(report.stages[0][1], report.grids, strict=True):
        assert grid is not None and grid.frames > 1
        sizes = torch.bincount(kept // (grid.rows * grid.cols), minlength=grid.frames)
        assert int(sizes.max() - sizes.min()) <= 1
