"""What must always hold (design.md), for every method on every family, on tiny models with strong weights.

The reference is the masking oracle for methods that drop tokens, and a forward on embeddings put together by hand for
methods that make new ones (test_merging.py).
"""

from __future__ import annotations

import copy

import pytest
import torch
import transformers
from harness import (
    RAGGED,
    STEPS,
    TEXT,
    TOLERANCE,
    alone,
    built,
    cases,
    counted,
    extend,
    families,
    generate,
    inputs_of,
    largest,
    oracle,
    policies,
    runnable,
    text_part,
)
from versions import behind, cache_of

import vlmprune
from vlmprune.core.method import PixelMethod
from vlmprune.core.recipe import format_method
from vlmprune.core.roles import changes_encoding
from vlmprune.models import adapter_for
from vlmprune.runtime.oracle import is_recurrent
from vlmprune.testing import FAMILIES, image_numbers

SPECS = {
    "random": "random:0.3",
    "random@2": "random@2:0.3",
    "divprune": "divprune:0.3",
    "hiprune": "hiprune:0.4",
    "fastv": "fastv:0.3",
    "fastv by number": "fastv@3:4",
    "dart": "dart:0.4",
    "before and inside": "divprune:0.5 > fastv@2:0.5",
    "three stages": "hiprune:0.7 > random@1:0.6 > fastv@2:3",
    "visionzip": "visionzip:0.4",
    "downsample": "downsample:0.5",
    "visionzip then fastv": "visionzip:0.6 > fastv@2:0.5",
}
METHODS = {name: [stage.method for stage in vlmprune.recipe(spec).stages] for name, spec in SPECS.items()}
MAKING = [name for name, all_of in METHODS.items() if any(one.merges or changes_encoding(one) for one in all_of)]
DROPPING = {name: spec for name, spec in SPECS.items() if name not in MAKING}


dropping = cases(DROPPING)
methods = cases(SPECS)


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


WHOLE = {name: format_method(all_of[0], 1.0) for name, all_of in METHODS.items() if len(all_of) == 1}


@cases(WHOLE)
def test_keeping_everything_is_bit_identical(family: str, name: str) -> None:
    model, inputs = built(family), inputs_of(family, RAGGED)
    ids, logits = generate(model, inputs)
    forward = model(**inputs).logits
    with vlmprune.prune(model, WHOLE[name]) as session:
        pruned_ids, pruned_logits = generate(model, inputs)
        pruned_forward = model(**inputs).logits
    assert torch.equal(ids, pruned_ids) and torch.equal(logits, pruned_logits)
    assert torch.equal(forward, pruned_forward)
    assert [before == after for before, after in session.last.tokens] == [True, True]


@dropping
def test_equals_the_masking_oracle(family: str, name: str) -> None:
    model, inputs = built(family), inputs_of(family, RAGGED)
    with vlmprune.prune(model, DROPPING[name]) as session:
        tokens, logits = generate(model, inputs)
    expected = oracle(family, RAGGED, inputs, tokens, session.last, policies(DROPPING[name], family))
    assert largest(logits, expected) < TOLERANCE
    vanilla = generate(model, inputs)[1]
    assert largest(logits[:, 0], vanilla[:, 0]) > 50 * TOLERANCE  # it did prune


@pytest.mark.parametrize("positions", ["original", "compact"])
@cases({name: DROPPING[name] for name in ("divprune", "fastv", "three stages")})
def test_both_position_policies_equal_the_oracle(family: str, name: str, positions: str) -> None:
    model, inputs = built(family), inputs_of(family, RAGGED)
    with vlmprune.prune(model, DROPPING[name], positions=positions) as session:
        tokens, logits = generate(model, inputs)
    right, wrong = (
        policies(DROPPING[name], family, policy) for policy in sorted(["original", "compact"], key=positions.__ne__)
    )
    assert largest(logits, oracle(family, RAGGED, inputs, tokens, session.last, right)) < TOLERANCE
    assert largest(logits, oracle(family, RAGGED, inputs, tokens, session.last, wrong)) > 50 * TOLERANCE


@families
def test_the_oracle_notices_one_token(family: str) -> None:
    """Negative control: one more token dropped at one layer shows on that sample, and only there."""
    model, inputs = built(family), inputs_of(family, RAGGED)
    with vlmprune.prune(model, "divprune:0.5 > fastv@2:0.5") as session:
        tokens, logits = generate(model, inputs)
    report = copy.deepcopy(session.last)
    report.stages[-1][1][0][0] = report.stages[-1][1][0][0][1:]
    expected = oracle(family, RAGGED, inputs, tokens, report, policies("divprune:0.5 > fastv@2:0.5", family))
    assert largest(logits[0], expected[0]) > 20 * TOLERANCE
    assert largest(logits[1], expected[1]) < TOLERANCE


@methods
def test_cached_equals_uncached(family: str, name: str) -> None:
    model, inputs = built(family), inputs_of(family, RAGGED)
    with vlmprune.prune(model, SPECS[name]) as session:
        tokens, logits = generate(model, inputs)
        kept = session.last.kept
        for step in range(STEPS):
            longer = counted(family, extend(family, inputs, tokens[:, :step]))
            # logits_to_keep marks where the prompt ends, so that a text-guided method asks the same token
            again = model(**longer, use_cache=False, logits_to_keep=step + 1).logits
            assert largest(again[:, -1], logits[:, step]) < TOLERANCE
            assert all(torch.equal(a, b) for x, y in zip(kept, session.last.kept) for a, b in zip(x, y))


@methods
def test_batch_equals_alone(family: str, name: str) -> None:
    model, samples = built(family), [[0, 1], [2], [1]]
    with vlmprune.prune(model, SPECS[name]) as session:
        tokens, logits = generate(model, inputs_of(family, samples))
        kept = session.last.kept
        for row in range(len(samples)):
            single = alone(family, samples, row)
            one_tokens, one_logits = generate(model, single)
            assert torch.equal(one_tokens[0], tokens[row])
            assert largest(one_logits[0], logits[row]) < TOLERANCE
            assert all(torch.equal(a, b) for a, b in zip(session.last.kept[0], kept[row]))


@methods
def test_eager_equals_sdpa(family: str, name: str) -> None:
    inputs = inputs_of(family, RAGGED)
    results = []
    for attention in ("sdpa", "eager"):
        with vlmprune.prune(built(family, attention), SPECS[name]) as session:
            results.append((*generate(built(family, attention), inputs), session.last.kept))
    assert torch.equal(results[0][0], results[1][0])
    assert largest(results[0][1], results[1][1]) < TOLERANCE


@cases(DROPPING, "sampling")
def test_beams_score_as_the_oracle_says(family: str, name: str) -> None:
    model, inputs = built(family), inputs_of(family, RAGGED)
    with vlmprune.prune(model, DROPPING[name]) as session:
        out = model.generate(
            **inputs, num_beams=3, max_new_tokens=STEPS, do_sample=False, length_penalty=0.0,
            return_dict_in_generate=True, output_scores=True,
        )  # fmt: skip
    tokens = out.sequences[:, inputs["input_ids"].shape[1] :]
    if is_recurrent(model) and transformers.__version__.startswith(("5.19.", "5.20.")):
        pytest.skip("transformers 5.19 and 5.20 score beams of recurrent layers wrongly, without pruning, too")
    assert len(session.last.kept) == 2
    logits = oracle(family, RAGGED, inputs, tokens, session.last, policies(DROPPING[name], family))
    chosen = logits.log_softmax(-1).gather(2, tokens[..., None])[..., 0].sum(1)
    assert largest(chosen, out.sequences_scores) < 10 * TOLERANCE  # a sum over steps


@cases(DROPPING, "sampling")
def test_sampling_and_several_answers(family: str, name: str) -> None:
    model, inputs = built(family), inputs_of(family, [[0, 1]])
    torch.manual_seed(3)
    with vlmprune.prune(model, DROPPING[name]) as session:
        tokens, logits = generate(model, inputs, do_sample=True, num_return_sequences=2)
    for row in range(2):
        one = tokens[row : row + 1]
        expected = oracle(family, [[0, 1]], inputs, one, session.last, policies(DROPPING[name], family))
        assert largest(logits[row : row + 1], expected) < TOLERANCE
    assert not torch.equal(tokens[0], tokens[1])


@cases(SPECS, "static cache")
def test_static_cache_equals_dynamic(family: str, name: str) -> None:
    model, inputs = built(family), inputs_of(family, RAGGED)
    with vlmprune.prune(model, SPECS[name]):
        tokens, logits = generate(model, inputs)
        static_tokens, static_logits = generate(model, inputs, cache_implementation="static", disable_compile=True)
    assert torch.equal(tokens, static_tokens)
    assert largest(logits, static_logits) < TOLERANCE


@cases(SPECS, "lookup")
def test_prompt_lookup_equals_greedy(family: str, name: str) -> None:
    model, inputs = built(family), inputs_of(family, [[0, 1]])
    # a repeated stretch of text, so that candidates exist from the first forward on
    repeated = torch.tensor([[11, 12, 13, 14, 15, 11, 12]])
    inputs = extend(family, inputs, repeated)
    with vlmprune.prune(model, SPECS[name]) as session:
        greedy = model.generate(**inputs, max_new_tokens=12, do_sample=False)
        kept = session.last.kept
        lookup = model.generate(**inputs, max_new_tokens=12, do_sample=False, prompt_lookup_num_tokens=3)
    assert torch.equal(greedy, lookup)
    assert all(torch.equal(a, b) for a, b in zip(kept[0], session.last.kept[0]))


@dropping
def test_second_turn_on_the_same_cache(family: str, name: str) -> None:
    check_second_turn(family, DROPPING[name])


@cases({"before and inside": DROPPING["before and inside"], "fastv": DROPPING["fastv"]})
def test_second_turn_under_compact_positions(family: str, name: str) -> None:
    check_second_turn(family, DROPPING[name], "compact")


def check_second_turn(family: str, spec: str, positions: str | None = None) -> None:
    model, inputs = built(family), inputs_of(family, RAGGED)
    question = torch.tensor([[21, 22, 23, 24], [31, 32, 33, 34]])
    with vlmprune.prune(model, spec, positions=positions) as session:
        first = model.generate(**inputs, max_new_tokens=STEPS, do_sample=False, return_dict_in_generate=True)
        report = session.last
        answer = first.sequences[:, inputs["input_ids"].shape[1] :]
        turn = extend(family, inputs, torch.cat([answer, question], dim=1))
        tokens, logits = generate(model, text_part(turn), **behind(cache_of(first)))
    said = torch.cat([answer, question, tokens], dim=1)
    expected = oracle(family, RAGGED, inputs, said, report, policies(spec, family, positions))
    assert largest(logits, expected[:, -STEPS:]) < TOLERANCE


@cases(DROPPING, "new image")
def test_new_image_in_the_second_turn(family: str, name: str) -> None:
    model, inputs = built(family), inputs_of(family, [[0], [4]])
    more = inputs_of(family, [[1], [5]], seed=50)
    with vlmprune.prune(model, DROPPING[name]) as session:
        first = model.generate(**inputs, max_new_tokens=STEPS, do_sample=False, return_dict_in_generate=True)
        reports = [session.last]
        answer = first.sequences[:, inputs["input_ids"].shape[1] :]
        full = text_part(extend(family, inputs, answer))
        for key, value in text_part(more).items():
            full[key] = torch.cat([full[key], value], dim=1)
        pixels = {key: value for key, value in more.items() if key not in TEXT}
        tokens, logits = generate(model, {**full, **pixels}, **behind(cache_of(first)))
        reports.append(session.last)
    report = copy.deepcopy(reports[0])
    report.stages = [
        (layer, [a + b for a, b in zip(kept, second, strict=True)])
        for (layer, kept), (_, second) in zip(reports[0].stages, reports[1].stages, strict=True)
    ]
    # row by row: the images of both turns, as a prompt with both would hold them
    both = inputs_of(family, [[0, 1], [4, 5]])
    numbers = [image_numbers(FAMILIES[family], [[a], [b]]) for a, b in ((0, 4), (1, 5))]
    numbers[1] = torch.where(numbers[1] >= 0, numbers[1] + 1, -1)
    between = torch.full_like(answer, -1)
    together = torch.cat([numbers[0], between, numbers[1]], dim=1)
    images = {key: value for key, value in both.items() if key not in TEXT}
    expected = oracle(family, RAGGED, {**full, **images}, tokens, report, policies(DROPPING[name], family), together)
    assert largest(logits, expected) < TOLERANCE


@cases(SPECS, "hand loop")
def test_loop_written_by_hand(family: str, name: str) -> None:
    """No position ids, no mask: the model counts by the cache, which must answer with the logical length."""
    model, inputs = built(family), inputs_of(family, [[0, 1]])
    inputs = {key: value for key, value in inputs.items() if key != "attention_mask"}
    with vlmprune.prune(model, SPECS[name]):
        tokens, logits = generate(model, inputs)
        out = model(**inputs, use_cache=True)
        for step in range(STEPS):
            assert largest(out.logits[:, -1], logits[:, step]) < TOLERANCE
            out = model(input_ids=tokens[:, step : step + 1], **behind(cache_of(out)))


@pytest.mark.parametrize("family", [name for name in FAMILIES if "hand loop" not in FAMILIES[name].lacks])
def test_a_mask_without_padding_changes_nothing(family: str) -> None:
    model, inputs = built(family), inputs_of(family, [[0, 1]])
    bare = {key: value for key, value in inputs.items() if key != "attention_mask"}
    for spec in ("divprune:0.3", "fastv:0.3"):
        with vlmprune.prune(model, spec):
            with_mask = model(**inputs, use_cache=False).logits
            without = model(**bare, use_cache=False).logits
        assert largest(with_mask[:, -1], without[:, -1]) < TOLERANCE


@methods
def test_budget_is_exact_and_text_stays(family: str, name: str) -> None:
    model, inputs = built(family), inputs_of(family, RAGGED)
    text = (image_numbers(FAMILIES[family], RAGGED) < 0) & (inputs["attention_mask"] == 1)
    for keep in (1, 3, 0.2, 0.99):
        method = METHODS[name][0]
        spec, resized = f"{method.name}:{keep}", isinstance(method, PixelMethod)
        with vlmprune.prune(model, spec) as session:
            model(**inputs)
        for row, (kept, columns) in enumerate(zip(session.last.kept, session.last.columns)):
            slots = [FAMILIES[family].slots(seed) for seed in RAGGED[row]]
            for image, n, grid in zip(kept, slots, session.last.grids[row], strict=True):
                wanted = min(keep, n) if isinstance(keep, int) else max(1, round(keep * n))
                if resized:
                    assert 1 <= len(image) <= max(wanted, grid.frames)  # the largest grid within the budget
                elif method.merges and adapter_for(model).tower_rows and adapter_for(model).has_cls:
                    assert len(image) <= wanted  # a CLS token may be among those made, and has no slot
                else:
                    assert len(image) == wanted
                assert torch.equal(image, torch.unique(image))  # sorted, distinct
            if not resized:
                budget = [min(keep, n) if isinstance(keep, int) else max(1, round(keep * n)) for n in slots]
                assert session.last.tokens[row] == (sum(slots), sum(budget))
            assert set(text[row].nonzero().squeeze(1).tolist()) <= set(columns.tolist())


@methods
def test_two_runs_are_one(family: str, name: str) -> None:
    model, inputs = built(family), inputs_of(family, RAGGED)
    with vlmprune.prune(model, SPECS[name]):
        first, second = generate(model, inputs), generate(model, inputs)
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])


@methods
def test_encoded_once_equals_encoded_each_time(family: str, name: str) -> None:
    model, inputs = built(family), inputs_of(family, RAGGED)
    if any(changes_encoding(method) for method in METHODS[name]):
        encoded = vlmprune.encode_images(model, inputs, ["divprune"])
        with pytest.raises(vlmprune.UserError, match="inside the encoder"), vlmprune.prune(model, SPECS[name]):
            generate(model, encoded.inputs())
        return
    encoded = vlmprune.encode_images(model, inputs, runnable(family, SPECS.values()))
    with vlmprune.prune(model, SPECS[name]) as session:
        expected, kept = generate(model, inputs), session.last.kept
        for _ in range(2):
            again = generate(model, encoded.inputs())
            assert torch.equal(expected[0], again[0]) and largest(expected[1], again[1]) < 1e-5
            assert all(torch.equal(a, b) for x, y in zip(kept, session.last.kept) for a, b in zip(x, y))


@methods
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_runs_and_keeps_as_many(family: str, name: str, dtype: torch.dtype) -> None:
    inputs = inputs_of(family, RAGGED)
    with vlmprune.prune(built(family), SPECS[name]) as session:
        generate(built(family), inputs)
        expected = session.last.tokens
    half = copy.deepcopy(built(family)).to(dtype)
    pixels = {key: value.to(dtype) for key, value in inputs.items() if key.startswith("pixel_values")}
    with vlmprune.prune(half, SPECS[name]) as session:
        _, logits = generate(half, {**inputs, **pixels})
    assert session.last.tokens == expected
    assert bool(torch.isfinite(logits).all()) and logits.shape[1] == STEPS


@torch.no_grad()
@methods
def test_right_padding_in_a_plain_forward(family: str, name: str) -> None:
    """The runtime puts fillers on the left; `columns` says which logits belong to which prompt token."""
    model, samples = built(family), [[0, 1], [2]]
    left = inputs_of(family, samples)
    right = {**left}
    for key in TEXT:
        if key in left:
            rows = zip(left[key], left["attention_mask"].sum(1).tolist(), strict=True)
            right[key] = torch.stack([row.roll(count) for row, count in rows])
    with vlmprune.prune(model, SPECS[name]) as session:
        logits, columns = model(**right).logits, session.last.columns
        for row in range(len(samples)):
            single = model(**alone(family, samples, row)).logits[0]
            real = columns[row] >= 0
            assert torch.equal(columns[row][real], session.last.columns[0])
            assert largest(logits[row][-len(real) :][real], single) < TOLERANCE
