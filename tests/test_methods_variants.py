"""Options and budgets of methods inside the LLM that take another way than the defaults, on models.

Each method by itself is run on every family in test_methods_on_models.py, and in every mode in test_methods_modes.py.
"""

from __future__ import annotations

import pytest
import torch
from harness import (
    RAGGED,
    STEPS,
    TOLERANCE,
    alone,
    built,
    counted,
    extend,
    generate,
    inputs_of,
    largest,
    oracle,
    policies,
)
from harness_staged import ALL, DROPPING, SIX, TRIMMING, VARIANTS, refused, run_on

import vlmprune
from vlmprune.core.recipe import Recipe, Stage


def on_models(names: list[str], families: list[str] = SIX) -> pytest.MarkDecorator:
    pairs = [(family, name) for family in families for name in names if not refused(family, name)]
    return pytest.mark.parametrize(("family", "name"), pairs)


@on_models([name for name in VARIANTS if name in DROPPING])
def test_equals_the_masking_oracle(family: str, name: str) -> None:
    recipe, inputs = Recipe((ALL[name],)), inputs_of(family, RAGGED)
    tokens, logits, report = run_on(family, recipe, inputs)
    expected = oracle(family, RAGGED, inputs, tokens, report, policies(recipe, family))
    assert largest(logits, expected) < TOLERANCE
    assert largest(logits[:, 0], generate(built(family), inputs)[1][:, 0]) > 50 * TOLERANCE  # it did prune
    assert all(after < before for before, after in report.tokens)


@on_models([*VARIANTS])
def test_cached_equals_uncached(family: str, name: str) -> None:
    """Where the cache is cut, the first new token; the others see less of it."""
    model, inputs = built(family), inputs_of(family, RAGGED)
    with vlmprune.prune(model, Recipe((ALL[name],))) as session:
        tokens, logits = generate(model, inputs)
        kept = session.last.kept
        for step in (0, STEPS - 1)[: 1 if name in TRIMMING else 2]:
            longer = counted(family, extend(family, inputs, tokens[:, :step]))
            again = model(**longer, use_cache=False, logits_to_keep=step + 1).logits
            assert largest(again[:, -1], logits[:, step]) < TOLERANCE
            assert all(torch.equal(a, b) for x, y in zip(kept, session.last.kept) for a, b in zip(x, y))


@on_models([*VARIANTS])
def test_batch_equals_alone(family: str, name: str) -> None:
    recipe = Recipe((ALL[name],))
    tokens, logits, report = run_on(family, recipe, inputs_of(family, RAGGED))
    for row in range(len(RAGGED)):
        one_tokens, one_logits, one = run_on(family, recipe, alone(family, RAGGED, row))
        assert torch.equal(one_tokens[0], tokens[row])
        assert largest(one_logits[0], logits[row]) < TOLERANCE
        assert all(torch.equal(a, b) for a, b in zip(one.kept[0], report.kept[row], strict=True))


@on_models([name for name in VARIANTS if ALL[name].method.budgeted])
def test_keeping_everything_is_bit_identical(family: str, name: str) -> None:
    inputs = inputs_of(family, RAGGED)
    ids, logits = generate(built(family), inputs)
    pruned_ids, pruned_logits, report = run_on(family, Recipe((Stage(ALL[name].method, 1.0),)), inputs)
    assert torch.equal(ids, pruned_ids) and torch.equal(logits, pruned_logits)
    assert all(before == after for before, after in report.tokens)
