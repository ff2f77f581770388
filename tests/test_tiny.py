"""The tiny families themselves: what vanilla transformers does with them, before any pruning."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from tiny import FAMILIES, alone, image_numbers, prompt
from torch import Tensor

RAGGED: list[list[int | None]] = [[0, 1], [2]]
families = pytest.mark.parametrize("family", FAMILIES)


@cache
def built(family: str, attention: str = "sdpa") -> Any:
    return FAMILIES[family].build(attention)


def generate(model: Any, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """New token ids [B, T] and the logits they were chosen from [B, T, V]."""
    out = model.generate(**inputs, max_new_tokens=3, do_sample=False, return_dict_in_generate=True, output_logits=True)
    return out.sequences[:, inputs["input_ids"].shape[1] :], torch.stack(out.logits, dim=1)


@families
def test_eager_equals_sdpa_and_batch_equals_alone(family: str) -> None:
    inputs = prompt(FAMILIES[family], RAGGED)
    tokens, logits = generate(built(family), inputs)
    eager_tokens, eager_logits = generate(built(family, "eager"), inputs)
    assert torch.equal(tokens, eager_tokens)
    assert (logits - eager_logits).abs().max() < 1e-4
    for row in range(len(RAGGED)):
        single_tokens, single_logits = generate(built(family), alone(FAMILIES[family], RAGGED, row))
        assert torch.equal(single_tokens[0], tokens[row])
        assert (single_logits[0] - logits[row]).abs().max() < 2e-4


@families
@pytest.mark.parametrize("samples", [RAGGED, [[3], [None, 4], [5, 1]]])
def test_image_numbers_count_the_slots(family: str, samples: list[list[int | None]]) -> None:
    inputs, numbers = prompt(FAMILIES[family], samples), image_numbers(FAMILIES[family], samples)
    assert numbers.shape == inputs["input_ids"].shape
    assert torch.equal(numbers >= 0, torch.isin(inputs["input_ids"], torch.tensor([90, 91])))
    for row, sample in zip(numbers, samples, strict=True):
        slots = [FAMILIES[family].slots(seed) for seed in sample if seed is not None]
        assert [int((row == number).sum()) for number in range(len(slots))] == slots
    assert torch.isfinite(built(family)(**inputs).logits).all()
