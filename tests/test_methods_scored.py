"""FasterVLM, VisPruner, PruMerge and PruMerge+, HiRED, HiPrune++: what each owes its caller."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from golden_runners.case import acting
from harness_views import (
    INFOS,
    INTERN,
    KINDS,
    LLAVA,
    NEXT,
    QWEN,
    cases,
    image,
    picked,
    shown,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vlmprune.core.errors import UserError
from vlmprune.core.method import Method
from vlmprune.core.recipe import format_method
from vlmprune.core.view import Grid, Merged, ModelInfo, TowerRows
from vlmprune.methods.vision.fastervlm import FasterVLM
from vlmprune.methods.vision.hiprune import HiPrune
from vlmprune.methods.vision.hiprune_plus import HiPrunePlus
from vlmprune.methods.vision.hired import HiRED
from vlmprune.methods.vision.prumerge import PruMerge
from vlmprune.methods.vision.prumerge_plus import PruMergePlus
from vlmprune.methods.vision.vispruner import VisPruner
from vlmprune.runtime.select import choose

CHOOSING: list[Method] = [
    FasterVLM(),
    VisPruner(),
    VisPruner(important=0.0),
    VisPruner(important=1.0),
    HiRED(),
    HiRED(alpha=0.0),
    HiRED(alpha=1.0),
    HiPrunePlus(),
    HiPrunePlus(beta=0.9, alpha=1.0),
]
MERGING: list[PruMerge] = [PruMerge(), PruMergePlus(), PruMergePlus(attended=0.0), PruMergePlus(attended=1.0)]
ADAPTIVE: list[PruMerge] = [PruMerge(adaptive=True), PruMergePlus(adaptive=True)]


@st.composite
def more_cases(draw: st.DrawFn) -> dict[str, Any]:
    """Those of test_methods on more families: their grids' frames are tiles there."""
    return {**draw(cases()), "info": draw(st.sampled_from(INFOS))}


@pytest.mark.parametrize("asked", CHOOSING, ids=format_method)
@given(case=more_cases())
@settings(max_examples=40, deadline=None)
def test_exactly_the_budget_in_order_and_again_the_same(asked: Method, case: dict[str, Any]) -> None:
    chosen = picked(asked, shown(asked, **case))
    assert chosen.dtype == torch.long
    assert len(chosen) == case["keep"]
    assert chosen.tolist() == sorted(set(chosen.tolist()))
    assert int(chosen[0]) >= 0 and int(chosen[-1]) < case["n"]
    assert torch.equal(chosen, picked(asked, shown(asked, **case)))


@pytest.mark.parametrize("asked", [*MERGING, *ADAPTIVE], ids=format_method)
@given(case=more_cases())
@settings(max_examples=40, deadline=None)
def test_merged_tokens_are_finite_and_each_has_a_place_of_its_own(asked: PruMerge, case: dict[str, Any]) -> None:
    merged, again = (asked.select(image(asked, **case)) for _ in range(2))
    anchors = merged.anchors.tolist()
    assert len(anchors) == len(merged.features) == len(set(anchors))
    assert min(anchors) >= 0 and max(anchors) < case["n"]
    assert merged.features.isfinite().all()
    assert torch.equal(merged.features, again.features) and torch.equal(merged.anchors, again.anchors)
    assert len(anchors) == case["keep"] or asked.adaptive
    if asked.positions(case["info"]) == "original":
        assert anchors == sorted(anchors)


@pytest.mark.parametrize("asked", [*CHOOSING, *MERGING], ids=format_method)
@pytest.mark.parametrize("info", INFOS, ids=lambda info: info.family)
@pytest.mark.parametrize("kind", KINDS)
def test_tiles_share_the_budget_through_the_runtime(asked: Method, info: ModelInfo, kind: str) -> None:
    view = shown(asked, n=80, keep=33, kind=kind, info=info, grid=Grid(4, 4, 5))
    for name, signal in view.signals.items():
        if isinstance(signal, TowerRows) and signal.cls is not None:
            view.signals = {**view.signals, name: TowerRows(signal.rows, signal.cls.expand(5, -1))}
    chosen = choose(acting(asked, 33, view))
    anchors = chosen.anchors if isinstance(chosen, Merged) else chosen
    assert len(set(anchors.tolist())) == 33
    together = isinstance(asked, HiRED) or (isinstance(asked, HiPrune) and not info.llava)
    assert asked.pool(info) == ("image" if together else "frame")
    if asked.pool(info) == "frame":
        counts = torch.bincount(anchors // 16, minlength=5)
        assert counts.max() - counts.min() <= 1


@pytest.mark.parametrize("asked", [*CHOOSING, *MERGING, *ADAPTIVE], ids=format_method)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_signals_count_as_the_numbers_they_are(asked: Method, dtype: torch.dtype) -> None:
    half = shown(asked, n=60, keep=17, grid=Grid(6, 10), dtype=dtype)
    whole = shown(asked, n=60, keep=17, grid=Grid(6, 10), dtype=dtype)
    whole.signals = {
        name: signal.float()
        if isinstance(signal, Tensor)
        else type(signal)(*[part.float() if isinstance(part, Tensor) else part for part in signal])
        for name, signal in half.signals.items()
    }
    a, b = asked.select(half), asked.select(whole)
    if isinstance(a, Merged) and isinstance(b, Merged):
        assert torch.equal(a.features, b.features) and torch.equal(a.anchors, b.anchors)
    else:
        assert isinstance(a, Tensor) and isinstance(b, Tensor) and torch.equal(a, b)


@pytest.mark.parametrize("asked", [*CHOOSING, *MERGING, *ADAPTIVE], ids=format_method)
def test_one_look_does_not_change_the_signals(asked: Method) -> None:
    view, untouched = (shown(asked, n=60, keep=20, grid=Grid(6, 10)) for _ in range(2))
    asked.select(view)
    for name, signal in view.signals.items():
        before = untouched[name]
        assert torch.equal(*(s if isinstance(s, Tensor) else s[0] for s in (signal, before)))


@pytest.mark.parametrize(
    ("asked", "first"),
    [
        (FasterVLM(), list(range(10))),
        (VisPruner(important=1.0), list(range(10))),
        (HiRED(), list(range(10))),
        (HiPrune(alpha=0.5), list(range(10))),  # one anchor, the first cell, whose neighbours are cells 1 and 8
        (PruMerge(), list(range(10))),
        (PruMergePlus(attended=1.0), list(range(10))),
    ],
    ids=lambda value: format_method(value) if isinstance(value, Method) else "",
)
def test_equal_scores_go_to_the_lower_index(asked: Method, first: list[int]) -> None:
    chosen = asked.select(shown(asked, n=64, keep=10, kind="constant", grid=Grid(8, 8)))
    assert (chosen.anchors if isinstance(chosen, Merged) else chosen).tolist() == first


@pytest.mark.parametrize("cls", [FasterVLM, VisPruner, HiRED, PruMerge, PruMergePlus, HiPrunePlus])
def test_a_method_says_what_it_is(cls: type[Method]) -> None:
    assert cls.summary and "\n" not in cls.summary and len(cls.summary) < 110
    assert cls.stage == "vision" and cls().exact and cls().decoder_layer(LLAVA) is None
    assert [cls().positions(info) for info in (LLAVA, NEXT, QWEN, INTERN)] == ["compact"] * 2 + ["original"] * 2
    for heading in ("Paper:", "Formula:", "Defaults:", "Differences from the authors' code:"):
        assert heading in (cls.__doc__ or ""), heading


@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (VisPruner, {"important": 1.1}),
        (VisPruner, {"compat": "theirs"}),
        (HiRED, {"alpha": -0.1}),
        (HiRED, {"compat": None}),
        (PruMerge, {"adaptive": 1}),
        (PruMergePlus, {"attended": 2}),
        (PruMergePlus, {"compat": ""}),
        (HiPrunePlus, {"beta": "0.1"}),
        (HiPrunePlus, {"relevance_sign": 0}),
        (HiPrunePlus, {"alpha": 3}),
    ],
)
def test_a_wrong_option_is_one_sentence(cls: type[Method], options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=rf"^{cls.name.replace('+', '.')}: {next(iter(options))}=.* must be .*\.$"):
        cls(**options)
