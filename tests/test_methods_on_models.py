"""Every method on every family and modality, in one run each; the modes of generation are in test_equivalence.py.

A ragged batch of two samples is generated from: the budget is exact, text stays, a dropping method equals the oracle,
the last step equals one uncached forward, and each sample alone gives the same.
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
from harness_methods import BLIND, METHODS, REFUSED, TOO_LATE, UNREADABLE, cutting, left

import vlmprune
from vlmprune.core.recipe import format_method
from vlmprune.models import adapter_for
from vlmprune.testing import FAMILIES, image_numbers

KEEP = 0.3
RUN = [(name, family) for name in METHODS for family in FAMILIES if (name, family) not in REFUSED]


@pytest.mark.complete
@torch.no_grad()
@pytest.mark.parametrize(("name", "family"), RUN)
def test_every_method_on_every_family(name: str, family: str) -> None:
    torch.set_num_threads(1)
    method, model, inputs = cutting(name), built(family), inputs_of(family, RAGGED)
    spec = f"{format_method(method)}:{KEEP}"
    text = (image_numbers(FAMILIES[family], RAGGED) < 0) & (inputs["attention_mask"] == 1)
    with vlmprune.prune(model, spec) as session:
        tokens, logits = generate(model, inputs)
        report = session.last
        steps = 1 if method.trims_cache else STEPS  # later ones see less than an uncached forward does
        longer = counted(family, extend(family, inputs, tokens[:, : steps - 1]))
        again = model(**longer, use_cache=False, logits_to_keep=steps).logits[:, -1]
        single = alone(family, RAGGED, 1)
        one = generate(model, single)[1][0]
    assert largest(again, logits[:, steps - 1]) < TOLERANCE
    assert largest(one, logits[1]) < TOLERANCE
    acts = vlmprune.recipe(spec).on(adapter_for(model).info).acts
    for row, seeds in enumerate(RAGGED):
        slots = [FAMILIES[family].slots(seed) for seed in seeds]
        assert set(text[row].nonzero().squeeze(1).tolist()) <= set(report.columns[row].tolist())
        videos = ["pixel_values_videos" in FAMILIES[family].image(seed)[0] for seed in seeds]
        assert report.videos[row] == videos
        due = [left(acts, *image) for image in zip(slots, report.grids[row], videos, strict=True)]
        assert report.tokens[row][0] == sum(slots)
        assert report.tokens[row][1] < sum(slots) or due == slots
        if not method.budget_means:
            assert due == [max(1, round(KEEP * n)) for n in slots]
        if method.exact:
            assert report.tokens[row][1] == sum(due)
        if method.exact and not method.merges:
            assert [len(kept) for kept in report.kept[row]] == due
    if not method.merges:
        expected = oracle(family, RAGGED, inputs, tokens, report, policies(spec, family))
        assert largest(logits, expected) < TOLERANCE


@pytest.mark.parametrize(("name", "family"), UNREADABLE)
def test_a_method_that_cannot_read_a_family_says_so(name: str, family: str) -> None:
    with pytest.raises(vlmprune.UserError, match="and some here have none"):
        vlmprune.prune(built(family), f"{name}:{KEEP}")


@pytest.mark.parametrize(("name", "family"), BLIND)
def test_a_method_that_reads_an_encoder_where_there_is_none_says_so(name: str, family: str) -> None:
    with (
        pytest.raises(vlmprune.UserError, match=r"Methods that read the vision encoder cannot run .* it has none"),
        vlmprune.prune(built(family), f"{name}:{KEEP}"),
    ):
        pass


@pytest.mark.parametrize(("name", "family"), TOO_LATE)
def test_a_method_that_cuts_too_late_for_a_family_says_so(name: str, family: str) -> None:
    with pytest.raises(vlmprune.UserError, match=r"so tokens can be cut .* before layers 1 to 2, not before layer \d"):
        vlmprune.prune(built(family), f"{name}:{KEEP}")
