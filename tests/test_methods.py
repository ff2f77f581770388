"""What every method owes its caller, whatever the image: the budget, order, determinism."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from harness_views import LLAVA, QWEN, cases, check_merged, image
from hypothesis import given, settings
from torch import Tensor

from vlmprune.core.method import Method
from vlmprune.core.plan import acts_of
from vlmprune.core.recipe import make_method
from vlmprune.core.registry import METHODS
from vlmprune.core.signals import (
    ClsAttention,
    EncoderKeys,
    Features,
    TowerFeatures,
)
from vlmprune.core.view import Grid, Merged
from vlmprune.methods.vision.divprune import DivPrune
from vlmprune.methods.vision.random import Random
from vlmprune.methods.vision.visionzip import VisionZip

CHOOSING = ["random", "random@2", "divprune", "hiprune", "fastv", "dart", "visionzip"]


def method(text: str, **options: Any) -> Method:
    name, _, layer = text.partition("@")
    return make_method(name, {**({"layer": int(layer)} if layer else {}), **options})


@pytest.mark.parametrize("text", CHOOSING)
@given(case=cases())
@settings(max_examples=60, deadline=None)
def test_the_budget_is_exact_and_the_result_is_the_same_on_every_run(text: str, case: dict[str, Any]) -> None:
    asked = method(text)
    view = image(asked, **case)
    chosen, again = asked.select(view), asked.select(image(asked, **case))
    if isinstance(chosen, Merged):
        assert isinstance(again, Merged)
        check_merged(chosen, view)
        assert torch.equal(chosen.features, again.features) and torch.equal(chosen.anchors, again.anchors)
    else:
        assert chosen.dtype == torch.long
        assert len(chosen) == view.keep
        assert chosen.tolist() == sorted(set(chosen.tolist()))
        assert int(chosen[0]) >= 0 and int(chosen[-1]) < view.n
        assert torch.equal(chosen, again)


@pytest.mark.parametrize("text", CHOOSING)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", ["noise", "ties", "constant"])
def test_half_precision_signals_count_as_the_numbers_they_are(text: str, dtype: torch.dtype, kind: str) -> None:
    asked = method(text)
    half = image(asked, 60, 17, kind, grid=Grid(6, 10), dtype=dtype)
    whole = image(asked, 60, 17, kind, grid=Grid(6, 10))
    whole.signals = {name: _as_float(signal) for name, signal in half.signals.items()}
    a, b = asked.select(half), asked.select(whole)
    if isinstance(a, Merged) and isinstance(b, Merged):
        assert torch.equal(a.features, b.features) and torch.equal(a.anchors, b.anchors)
    else:
        assert torch.equal(a, b)


def _as_float(signal: Any) -> Any:
    if isinstance(signal, Tensor):
        return signal.float()
    return type(signal)(*[None if part is None else part.float() for part in signal])


@pytest.mark.parametrize("text", ["divprune", "hiprune", "fastv", "dart"])
@pytest.mark.parametrize("keep", [1, 2, 3, 20, 59])
def test_one_look_does_not_change_the_signals(text: str, keep: int) -> None:
    for compat in ("paper", "official") if text != "fastv" else ("paper",):
        asked = method(text, **({"compat": compat} if text != "fastv" else {}))
        view = image(asked, 60, keep, grid=Grid(6, 10), info=QWEN)
        before = torch.cat(
            [torch.cat([*s]).flatten() if isinstance(s, tuple) else s.flatten() for s in view.signals.values()]
        )
        asked.select(view)
        after = torch.cat(
            [torch.cat([*s]).flatten() if isinstance(s, tuple) else s.flatten() for s in view.signals.values()]
        )
        assert torch.equal(before, after)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_method_says_what_it_is(name: str) -> None:
    cls = METHODS[name]
    assert cls.name == name
    assert cls.summary and "\n" not in cls.summary and len(cls.summary) < 110
    stages = set(cls.stage.split(", "))
    assert stages <= {"pixels", "vision", "decoder"}
    assert cls().exact or cls.budget_means  # where the image decides, a budget is no count
    for info in (LLAVA, QWEN):
        assert cls().positions(info) in ("original", "compact")
        for act in acts_of(cls(), 0.5, info):
            assert stages & ({"pixels", "vision"} if act.layer is None else {"decoder"})
    for heading in ("Paper:", "Formula:", "Defaults"):
        assert heading in (cls.__doc__ or ""), heading
    rebuilt = "reconstruction" in (cls.__doc__ or "") and "Ours, where the sources say nothing" in (cls.__doc__ or "")
    assert (
        "Paper: none" in (cls.__doc__ or "") or rebuilt or "Differences from the authors' code" in (cls.__doc__ or "")
    )


def test_methods_before_the_llm_number_positions_as_their_authors_do() -> None:
    for text in ("random", "divprune", "hiprune", "visionzip"):
        assert method(text).positions(LLAVA) == "compact"
        assert method(text).positions(QWEN) == "original"
    for text in ("random@2", "fastv", "dart"):
        assert method(text).positions(LLAVA) == method(text).positions(QWEN) == "original"


def test_needs_are_what_the_encoder_can_give() -> None:
    assert DivPrune().needs(LLAVA) == {"features": Features()}
    assert VisionZip().needs(QWEN) == {"rows": TowerFeatures(), "attention": ClsAttention(), "keys": EncoderKeys()}
    assert Random().needs(LLAVA) == {}
