"""Every method in every mode of generation, on every family; most combinations are `exhaustive` (`thinning.py`).

test_methods_on_models.py shows on every family that greedy decoding on a dynamic cache equals forwards without a
cache and, where tokens are only dropped, the oracle; here the other modes are held to these.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable
from functools import cache
from typing import Any

import pytest
import torch
from harness import RAGGED, STEPS, TOLERANCE, built, counted, extend, generate, inputs_of, largest, text_part
from harness_methods import METHODS, REFUSED
from torch import Tensor
from versions import behind, cache_of

import vlmprune
from vlmprune.testing import FAMILIES

KEEP = 0.3
UNTRIMMED = [name for name in METHODS if not vlmprune.METHODS[name]().trims_cache]  # more in methods/test_mustdrop.py
# Padding inside tiles makes equal tokens: which of them are the next best to those kept, rounding decides.
TIED = [(name, key) for name in METHODS if vlmprune.METHODS[name].wraps for key in FAMILIES if FAMILIES[key].padded]
COUNTED = [name for name in METHODS if vlmprune.METHODS[name]().exact]  # the others count by values, which half rounds


def on_models(names: Iterable[str], mode: str = "", but: Collection[tuple[str, str]] = ()) -> pytest.MarkDecorator:
    """(family, method), but for families that lack the mode, and the pairs (method, family) of `but`."""
    pairs = [
        pytest.param(family, name, id=f"{family}-{name}")
        for family in FAMILIES
        for name in names
        if mode not in FAMILIES[family].lacks and (name, family) not in (*REFUSED, *but)
    ]
    return pytest.mark.parametrize(("family", "name"), pairs)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@cache
def half(family: str) -> Any:
    return copy.deepcopy(built(family)).to(torch.bfloat16)


@torch.no_grad()
def uncached(family: str, inputs: dict[str, Tensor], later: Tensor) -> Tensor:
    """Logits [B, T, V] from which the tokens `later` [B, T] behind the prompt are chosen, by one forward."""
    longer = counted(family, extend(family, inputs, later[:, :-1]))
    count = later.shape[1]
    return built(family)(**longer, use_cache=False, logits_to_keep=count).logits[:, -count:]


@on_models(METHODS)
def test_keeping_everything_is_bit_identical(family: str, name: str) -> None:
    model, inputs = built(family), inputs_of(family, RAGGED)
    ids, logits = generate(model, inputs, max_new_tokens=2)
    with vlmprune.prune(model, f"{name}:1.0") as session:
        pruned_ids, pruned = generate(model, inputs, max_new_tokens=2)
    assert torch.equal(ids, pruned_ids) and torch.equal(logits, pruned)
    assert [before == after for before, after in session.last.tokens] == [True, True]


@on_models(METHODS, but=TIED)
def test_eager_attention_keeps_the_same_tokens(family: str, name: str) -> None:
    inputs, results = inputs_of(family, RAGGED), []
    for attention in ("sdpa", "eager"):
        with vlmprune.prune(built(family, attention), f"{name}:{KEEP}") as session:
            results.append((*generate(built(family, attention), inputs), session.last.columns))
    assert torch.equal(results[0][0], results[1][0])
    assert largest(results[0][1], results[1][1]) < TOLERANCE
    assert torch.equal(results[0][2], results[1][2])


@on_models(METHODS, "static cache")
def test_static_cache_equals_dynamic(family: str, name: str) -> None:
    model, inputs = built(family), inputs_of(family, RAGGED)
    with vlmprune.prune(model, f"{name}:{KEEP}"):
        tokens, logits = generate(model, inputs)
        static_tokens, static_logits = generate(model, inputs, cache_implementation="static", disable_compile=True)
    assert torch.equal(tokens, static_tokens)
    assert largest(logits, static_logits) < TOLERANCE


@on_models(METHODS, "lookup")
def test_prompt_lookup_equals_greedy(family: str, name: str) -> None:
    model = built(family)
    repeated = torch.tensor([[11, 12, 13, 14, 15, 11, 12]])  # so that there are candidates in the first forward
    inputs = extend(family, inputs_of(family, [[0, 1]]), repeated)
    with vlmprune.prune(model, f"{name}:{KEEP}") as session:
        greedy = model.generate(**inputs, max_new_tokens=10, do_sample=False)
        columns = session.last.columns
        lookup = model.generate(**inputs, max_new_tokens=10, do_sample=False, prompt_lookup_num_tokens=3)
        candidates = session.last.columns.shape[1] - columns.shape[1]
    assert torch.equal(greedy, lookup)
    assert (candidates == 0) == vlmprune.METHODS[
        name
    ]().trims_cache  # where a cache is cut behind the prompt, they come after it
    assert torch.equal(columns, session.last.columns[:, : columns.shape[1]])


@on_models(UNTRIMMED, mode="sampling")
def test_beams_score_as_without_a_cache(family: str, name: str) -> None:
    model, inputs = built(family), inputs_of(family, RAGGED)
    with vlmprune.prune(model, f"{name}:{KEEP}"):
        out = model.generate(
            **inputs, num_beams=3, max_new_tokens=STEPS, do_sample=False, length_penalty=0.0,
            return_dict_in_generate=True, output_scores=True,
        )  # fmt: skip
        tokens = out.sequences[:, inputs["input_ids"].shape[1] :]
        logits = uncached(family, inputs, tokens)
    chosen = logits.log_softmax(-1).gather(2, tokens[..., None])[..., 0].sum(1)
    assert largest(chosen, out.sequences_scores) < 10 * TOLERANCE  # a sum over steps


@on_models(UNTRIMMED)
def test_second_turn_equals_one_without_a_cache(family: str, name: str) -> None:
    model, inputs = built(family), inputs_of(family, RAGGED)
    question = torch.tensor([[21, 22, 23, 24], [31, 32, 33, 34]])
    with vlmprune.prune(model, f"{name}:{KEEP}"):
        first = model.generate(**inputs, max_new_tokens=3, do_sample=False, return_dict_in_generate=True)
        said = torch.cat([first.sequences[:, inputs["input_ids"].shape[1] :], question], dim=1)
        turn = extend(family, inputs, said)
        tokens, logits = generate(model, text_part(turn), max_new_tokens=3, **behind(cache_of(first)))
        expected = uncached(family, inputs, torch.cat([said, tokens], dim=1))
    assert largest(logits, expected[:, -3:]) < TOLERANCE


@on_models(COUNTED)
@torch.no_grad()
def test_half_precision_is_finite_and_keeps_as_many(family: str, name: str) -> None:
    inputs, counts = inputs_of(family, RAGGED), []
    for model in (built(family), half(family)):
        pixels = {key: value.to(model.dtype) for key, value in inputs.items() if key.startswith("pixel_values")}
        with vlmprune.prune(model, f"{name}:{KEEP}") as session:
            logits = model(**inputs | pixels).logits
        counts.append(session.last.tokens)
    assert counts[0] == counts[1]
    assert bool(logits[:, -1].isfinite().all())
