"""G-Prune, HoloV, GridPrune, uniform choice, average pooling and ToMe: what each owes its caller."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from golden_runners.case import acting
from harness_views import (
    INTERN,
    KINDS,
    LLAVA,
    NEXT,
    QWEN,
    WIDTH,
    anyres,
    cases,
    check_picks,
    merged_by,
    picked,
    shown,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vlmprune.core.errors import UserError
from vlmprune.core.method import Method
from vlmprune.core.recipe import format_method
from vlmprune.core.view import Aligned, Grid, Merged
from vlmprune.methods.vision.gprune import GPrune
from vlmprune.methods.vision.gridprune import GridPrune
from vlmprune.methods.vision.holov import HoloV
from vlmprune.methods.vision.pool import Pool
from vlmprune.methods.vision.tome import ToMe
from vlmprune.methods.vision.uniform import Uniform
from vlmprune.runtime.select import choose

INFOS = [LLAVA, NEXT, INTERN, QWEN]
CHOOSING: list[Method] = [
    GPrune(),
    GPrune(similarity=0.0, temperature=0.5, iterations=1),
    GPrune(similarity=1.0),
    HoloV(),
    HoloV(crops=7, alpha=0.0),
    GridPrune(),
    GridPrune(zones=3, temperature=0.01, alpha=0.0),
    GridPrune(alpha=1.0, saliency="raw", relevance_sign=-1),
    Uniform(),
]
MERGING: list[Method] = [Pool(), Pool(mode="max"), ToMe(), ToMe(order="matching", weighted=False)]


@st.composite
def more_cases(draw: st.DrawFn) -> dict[str, Any]:
    """Those of test_methods on more families: their grids' frames are tiles there."""
    return {**draw(cases()), "info": draw(st.sampled_from(INFOS))}


def check_merged(merged: Merged, keep: int, n: int) -> None:
    anchors = merged.anchors.tolist()
    assert merged.features.shape == (keep, WIDTH)
    assert merged.features.isfinite().all()
    assert len(set(anchors)) == len(anchors) == keep
    assert min(anchors) >= 0 and max(anchors) < n


@pytest.mark.parametrize("asked", CHOOSING, ids=format_method)
@given(case=more_cases())
@settings(max_examples=40, deadline=None)
def test_exactly_the_budget_in_order_and_again_the_same(asked: Method, case: dict[str, Any]) -> None:
    chosen = picked(asked, shown(asked, **case))
    check_picks(chosen, case["keep"], case["n"])
    assert torch.equal(chosen, picked(asked, shown(asked, **case)))


@pytest.mark.parametrize("asked", MERGING, ids=format_method)
@given(case=more_cases())
@settings(max_examples=40, deadline=None)
def test_merged_tokens_are_finite_and_each_has_a_place_of_its_own(asked: Method, case: dict[str, Any]) -> None:
    merged, again = (merged_by(asked, shown(asked, **case)) for _ in range(2))
    check_merged(merged, case["keep"], case["n"])
    assert torch.equal(merged.features, again.features) and torch.equal(merged.anchors, again.anchors)
    if format_method(asked) != format_method(MERGING[-1]):
        assert merged.anchors.tolist() == sorted(merged.anchors.tolist())


@pytest.mark.parametrize("asked", [*CHOOSING, *MERGING], ids=format_method)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("keep", [1, 9, 40, 87])
def test_tiles_and_newlines_through_the_runtime(asked: Method, kind: str, keep: int) -> None:
    view = anyres(asked, keep, 2, 2, kind)
    chosen = choose(acting(asked, keep, view))
    if isinstance(chosen, Merged):
        check_merged(chosen, keep, view.n)
    else:
        check_picks(chosen, keep, view.n)
    if keep == 40:
        newlines = int((view.cells[chosen.anchors if isinstance(chosen, Merged) else chosen] < 0).sum())
        assert newlines == (8 if isinstance(asked, GPrune) else 0)


@pytest.mark.parametrize("asked", [*CHOOSING, *MERGING], ids=format_method)
@given(
    tiles=st.sampled_from([(1, 2), (2, 1), (2, 2), (1, 3)]),
    kind=st.sampled_from(KINDS),
    patches=st.floats(0, 1),
    newlines=st.floats(0, 1),
    share=st.floats(0, 1),
    seed=st.integers(0, 9),
)
@settings(max_examples=40, deadline=None)
def test_the_budget_is_exact_whatever_an_earlier_stage_left(
    asked: Method, tiles: tuple[int, int], kind: str, patches: float, newlines: float, share: float, seed: int
) -> None:
    view = anyres(asked, 1, *tiles, kind)
    drawn = torch.rand(view.n, generator=torch.Generator().manual_seed(seed))
    tokens = (drawn < torch.where(view.cells < 0, newlines, patches)).nonzero().squeeze(1)
    if len(tokens) < 2:
        tokens = (view.cells < 0).nonzero().squeeze(1)[:2]  # not a single patch
    keep = 1 + int(share * (len(tokens) - 2))
    signals = {name: need.take(view[name], tokens) for name, need in asked.needs(NEXT).items()}
    chosen = choose(acting(asked, keep, view.part(tokens, keep, signals)))
    if isinstance(chosen, Merged):
        check_merged(chosen, keep, len(tokens))
    else:
        check_picks(chosen, keep, len(tokens))


@pytest.mark.parametrize("asked", [*CHOOSING, *MERGING], ids=format_method)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_signals_count_as_the_numbers_they_are(asked: Method, dtype: torch.dtype) -> None:
    def floats(signal: Any) -> Any:
        return signal.float() if isinstance(signal, Tensor) else Aligned(signal[0].float(), signal[1].float(), False)

    half, whole = (shown(asked, n=60, keep=17, grid=Grid(6, 10), dtype=dtype) for _ in range(2))
    whole.signals = {name: floats(signal) for name, signal in whole.signals.items()}
    a, b = asked.select(half), asked.select(whole)
    if isinstance(a, Merged) and isinstance(b, Merged):
        assert torch.equal(a.features, b.features) and torch.equal(a.anchors, b.anchors)
    else:
        assert isinstance(a, Tensor) and isinstance(b, Tensor) and torch.equal(a, b)


@pytest.mark.parametrize(
    "asked", [*CHOOSING, *MERGING, GPrune(compat="official"), HoloV(compat="official")], ids=format_method
)
@pytest.mark.parametrize("keep", [1, 2, 20, 59])
def test_one_look_does_not_change_the_signals(asked: Method, keep: int) -> None:
    view, untouched = (shown(asked, n=60, keep=keep, grid=Grid(6, 10)) for _ in range(2))
    asked.select(view)
    for name, signal in view.signals.items():
        before = untouched.signals[name]
        pairs = [(signal, before)] if isinstance(signal, Tensor) else list(zip(signal[:2], before[:2]))
        assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("asked", [GPrune(), HoloV()], ids=format_method)
def test_features_that_are_not_finite_do_not_break_the_budget(asked: Method) -> None:
    view = shown(asked, n=60, keep=17, grid=Grid(6, 10))
    view["features"][3] = float("inf")
    view["features"][4] = float("nan")
    check_picks(picked(asked, view), 17, 60)


@pytest.mark.parametrize(
    ("asked", "first"),
    [
        (GPrune(), list(range(10))),
        (HoloV(crops=4), [0, 1, 2, 4, 5, 6, 32, 33, 36, 37]),
        (GridPrune(zones=2), [0, 1, 2, 4, 5, 6, 32, 33, 36, 37]),
    ],
    ids=["gprune", "holov", "gridprune"],
)
def test_ties_go_to_the_lower_index_and_the_earlier_part(asked: Method, first: list[int]) -> None:
    assert picked(asked, shown(asked, n=64, keep=10, kind="constant", grid=Grid(8, 8))).tolist() == first


@pytest.mark.parametrize("cls", [GPrune, HoloV, GridPrune, Pool, ToMe])
def test_each_says_what_it_is(cls: type[Method]) -> None:
    assert cls.stage == "vision" and cls.summary and "\n" not in cls.summary and len(cls.summary) < 110
    assert cls().exact and cls().decoder_layer(LLAVA) is None
    for heading in ("Paper:", "Formula:", "Defaults", "Differences from the authors' code"):
        assert heading in (cls.__doc__ or ""), heading


def test_positions_are_counted_as_their_authors_do() -> None:
    for asked in (HoloV(), GridPrune(), Pool(), ToMe()):
        assert asked.positions(LLAVA) == asked.positions(NEXT) == "compact"
    for asked in (HoloV(), GridPrune(), Pool(), ToMe(), GPrune(), GPrune(compat="uniprune")):
        assert asked.positions(QWEN) == "original"
    assert GPrune().positions(NEXT) == GPrune(compat="official").positions(NEXT) == "original"
    assert GPrune(compat="uniprune").positions(INTERN) == Pool().positions(INTERN) == "compact"


@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (GPrune, {"similarity": 1.5}),
        (GPrune, {"temperature": 0}),
        (GPrune, {"temperature": float("nan")}),
        (GPrune, {"iterations": -1}),
        (GPrune, {"compat": "authors"}),
        (HoloV, {"crops": 0}),
        (HoloV, {"alpha": -0.1}),
        (GridPrune, {"zones": 0}),
        (GridPrune, {"relevance_sign": 2}),
        (GridPrune, {"temperature": True}),
        (Pool, {"mode": "sum"}),
        (Pool, {"per": "image"}),
        (ToMe, {"weighted": 1}),
        (ToMe, {"order": "random"}),
    ],
)
def test_a_wrong_option_is_one_sentence(cls: type[Method], options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=rf"^{cls.name}: {next(iter(options))}=.* must be .*\.$"):
        cls(**options)
