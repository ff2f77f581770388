"""AdaptInfer."""

from __future__ import annotations

import pytest
from harness_staged import (
    QWEN2,
    counts_of,
    layers_of,
)

from vlmprune.core.view import ModelInfo
from vlmprune.methods.decoder.adaptinfer import AdaptInfer


@pytest.mark.parametrize(
    ("budget", "kept"), [(128, [290, 72, 18]), (64, [133, 27, 3]), (48, [80, 24, 2]), (32, [40, 12, 0])]
)
def test_adaptinfer_has_the_papers_lists(budget: int, kept: list[int]) -> None:
    assert counts_of(AdaptInfer(), budget / 576, 576) == counts_of(AdaptInfer(), budget, 576) == kept
    assert layers_of(AdaptInfer()) == [2, 11, 21]
    leaving = [576] + [kept[0]] * 9 + [kept[1]] * 10 + [kept[2]] * 12
    assert sum(leaving) / 32 == pytest.approx(budget, abs=6)


def test_adaptinfer_on_thirteen_billions_and_on_qwen() -> None:
    large = ModelInfo("llava", 24, 40, has_cls=True)
    assert layers_of(AdaptInfer(), large) == [2, 11, 21]
    assert counts_of(AdaptInfer(), 128, 576, large) == [300, 94, 30]
    assert counts_of(AdaptInfer(), 64, 576, large) == [148, 40, 5]
    assert layers_of(AdaptInfer(), QWEN2) == [1, 10, 20]
    assert counts_of(AdaptInfer(), 0.1, 1000, QWEN2) == [170, 102, 30]
    assert counts_of(AdaptInfer(), 0.5, 1000, QWEN2) == [700, 630, 189]
