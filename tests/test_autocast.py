"""An autocast around the model leaves methods and statistics the precision that they are described with."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
import torch
from harness import built, inputs_of
from torch import Tensor

import vlmprune
from vlmprune.core.method import Method
from vlmprune.core.roles import Observes
from vlmprune.core.view import ImageView
from vlmprune.methods.hybrid.hilo import HiLo
from vlmprune.scores import attention_rows, received_attention


def product_dtype() -> torch.dtype:
    return (torch.ones(2, 2) @ torch.ones(2, 2)).dtype


@dataclass
class Tells(Observes, Method):
    """Keeps the first tokens, and notes in what precision it multiplies."""

    name: ClassVar[str] = "tells"
    stage: ClassVar[str] = "vision"
    seen: list[torch.dtype] = field(default_factory=list)

    def observe(self, view: ImageView) -> None:
        self.seen.append(product_dtype())

    def select(self, view: ImageView) -> Tensor:
        self.seen.append(product_dtype())
        return torch.arange(view.keep)


def run(recipe: Any, keep: float) -> Any:
    with (
        torch.no_grad(),
        torch.autocast("cpu", torch.bfloat16),
        vlmprune.prune(built("llava"), recipe, keep) as session,
    ):
        assert product_dtype() == torch.bfloat16, "the model runs under autocast"
        built("llava")(**inputs_of("llava", [[0]]))
        assert product_dtype() == torch.bfloat16, "and goes on so"
    return session.last


def test_a_method_multiplies_in_float32() -> None:
    method = Tells()
    run(method, 0.5)
    assert method.seen == [torch.float32] * 2


def test_fusion_multiplies_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    from vlmprune.runtime import fusion

    seen: list[torch.dtype] = []

    def fused(*args: Any, _way: Any = fusion.fused_attention, **kwargs: Any) -> Any:
        seen.append(product_dtype())
        return _way(*args, **kwargs)

    monkeypatch.setattr(fusion, "fused_attention", fused)
    run("hilo", 0.3)
    assert seen and {*seen} == {torch.float32}


def test_what_computes_statistics_is_tried_out_without_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else kernels that work would be given up for being nearer to the truth than torch is then."""
    from vlmprune.scores import choice

    seen: list[torch.dtype] = []
    monkeypatch.setattr(choice, "chosen", lambda query: seen.append(product_dtype()) or "torch")
    with torch.autocast("cpu", torch.bfloat16):
        attention_rows(torch.ones(1, 1, 1, 4), torch.ones(1, 1, 3, 4), 0.5)
    assert seen == [torch.float32]


def test_candidates_are_named_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.dtype] = []

    def named(self: HiLo, views: Any, _way: Any = HiLo.candidates_together) -> Any:
        seen.append(product_dtype())
        return _way(self, views)

    monkeypatch.setattr(HiLo, "candidates_together", named)
    run("hilo", 0.3)
    assert seen and {*seen} == {torch.float32}


def test_statistics_are_those_without_autocast() -> None:
    draw = torch.Generator().manual_seed(0)
    query, key = (torch.randn(1, 2, 9, 8, generator=draw) for _ in range(2))
    for statistic in (attention_rows, received_attention):
        exact = statistic(query, key, 0.3)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(statistic(query, key, 0.3), exact)
