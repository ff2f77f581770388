"""`generate` without a cache feeds the prompt again at every step: what was chosen of it stays."""

from __future__ import annotations

import pytest
import torch
from harness import RAGGED, TOLERANCE, built, generate, inputs_of, largest

import vlmprune


@pytest.mark.parametrize(
    "spec", ["random:0.3", "random@2:0.3", "fastv@2:0.4", "sparsevlm:0.4", "divprune:0.5 > fastv@2:0.5"]
)
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_generation_without_a_cache_equals_the_cached_one(family: str, spec: str) -> None:
    model, inputs = built(family), inputs_of(family, RAGGED)
    with vlmprune.prune(model, spec) as session:
        expected = generate(model, inputs)
        kept = session.last.kept
        found = generate(model, inputs, use_cache=False)
        assert all(torch.equal(a, b) for x, y in zip(kept, session.last.kept) for a, b in zip(x, y))
    assert torch.equal(found[0], expected[0]) and largest(found[1], expected[1]) < TOLERANCE


def test_a_plain_forward_is_a_prompt_of_its_own() -> None:
    """Between two generations, what was counted in one of them says nothing."""
    model, inputs = built("llava"), inputs_of("llava", RAGGED)
    with vlmprune.prune(model, "random:0.3") as session:
        model(**inputs)
        kept = session.last.kept
        generate(model, inputs, use_cache=False)
        model(**inputs)
        assert all(torch.equal(a, b) for x, y in zip(kept, session.last.kept) for a, b in zip(x, y))
