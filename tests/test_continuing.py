"""How position ids go on behind a video: `generate` and the model itself count on from different ids."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from harness import STEPS, TOLERANCE, built, extend, generate, largest, text_part
from harness import policies as policies_of
from torch import Tensor
from versions import behind, cache_of

import vlmprune
from vlmprune.models import adapter_for
from vlmprune.runtime.oracle import oracle
from vlmprune.testing import FAMILIES, Family, alone, image_numbers, prompt
from vlmprune.testing.qwen import video

SPECS = {"before": "divprune:0.3", "inside": "fastv@2:0.3", "both": "divprune:0.5 > fastv@2:0.4"}
QUESTION = torch.tensor([[21, 22, 23, 24]])
LONG = {0: (8, 4, 4), 1: (6, 6, 4)}  # many small frames: the text behind them has smaller ids than the last of them
SHORT = {0: (2, 4, 8), 1: (2, 8, 6)}
KINDS = {
    "qwen2_vl": {},
    "qwen2_5_vl": {"seconds": True},
    "qwen3_vl": {"timestamps": True},
    "qwen3_5": {"timestamps": True},
}
CASES = [(family, long, spec) for family in KINDS for long in (True, False) for spec in SPECS]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def videos(name: str, long: bool) -> Family:
    kind = video(**KINDS[name], grid_of=(LONG if long else SHORT).__getitem__)
    return replace(FAMILIES[f"{name} video"], kind=kind)


def inputs_of(name: str, long: bool, samples: list[list[int]], seconds: float = 1.0) -> dict[str, Tensor]:
    inputs = prompt(videos(name, long), samples)
    if "second_per_grid_ts" in inputs:
        inputs["second_per_grid_ts"] = torch.full_like(inputs["second_per_grid_ts"], seconds)
    return inputs


def positions_of(name: str, inputs: dict[str, Tensor]) -> Tensor:
    """[3, B, S] by the model's own rule, text behind the prompt counted as `generate` does."""
    rest = {key: value for key, value in inputs.items() if key not in ("input_ids", "pixel_values_videos")}
    return adapter_for(built(name)).inner.get_rope_index(inputs["input_ids"], **rest)[0]


def jumped(name: str, inputs: dict[str, Tensor], said: Tensor, start: int) -> tuple[Tensor, int]:
    """Ids of a prompt and of what is said behind it, which the model itself counts from column `start` of it on."""
    length = inputs["input_ids"].shape[1]
    positions = positions_of(name, extend(name, inputs, said[:, :-1]))
    jump = positions[..., :length].amax((0, 2)) - positions[0, :, length - 1]
    positions[..., length + start :] += jump[:, None]
    return positions, int(jump.max())


def due(
    name: str, long: bool, samples: list[list[int]], inputs: dict[str, Tensor], said: Tensor, run: Any, at: Any
) -> Tensor:
    policies, start = at
    positions, _ = jumped(name, inputs, said, start)
    family = videos(name, long)
    rows = [{**inputs, **alone(family, samples, row)} for row in range(len(samples))]
    for row, own in enumerate(rows):
        if "second_per_grid_ts" in own:
            own["second_per_grid_ts"] = inputs["second_per_grid_ts"][row, None]
    numbers = image_numbers(family, samples)
    return oracle(built(name), inputs, rows, said, run, policies, numbers, positions)


def test_the_two_ways_differ_behind_long_videos_only() -> None:
    """Otherwise the tests below say nothing."""
    for name in KINDS:
        for long in (True, False):
            inputs = inputs_of(name, long, [[0]], 4.0 if long else 0.5)
            jump = jumped(name, inputs, QUESTION, 0)[1]
            assert (jump > 0) == (long and name in ("qwen2_vl", "qwen2_5_vl")), (name, long, jump)


@torch.no_grad()
@pytest.mark.parametrize("positions", ["original", "compact"])
@pytest.mark.parametrize(("name", "long", "spec"), CASES)
def test_generate_and_a_second_turn_equal_the_oracle(name: str, long: bool, spec: str, positions: str) -> None:
    """A ragged batch; in the second turn `generate` counts on from the largest id."""
    samples = [[0], [1]]
    model, inputs = built(name), inputs_of(name, long, samples, 4.0 if long else 0.5)
    question = QUESTION.expand(2, -1)
    with vlmprune.prune(model, SPECS[spec], positions=positions) as session:
        first = model.generate(
            **inputs, max_new_tokens=STEPS, do_sample=False, return_dict_in_generate=True, output_logits=True
        )
        report = session.last
        answer = first.sequences[:, inputs["input_ids"].shape[1] :]
        turn = extend(name, inputs, torch.cat([answer, question], dim=1))
        tokens, logits = generate(model, text_part(turn), **behind(cache_of(first)))
    policies = policies_of(SPECS[spec], name, positions)
    said = torch.cat([answer, question, tokens], dim=1)
    expected = due(name, long, samples, inputs, answer, report, (policies, STEPS))
    assert largest(torch.stack(first.logits, dim=1), expected) < TOLERANCE
    # the last token of the answer is fed with the second turn
    expected = due(name, long, samples, inputs, said, report, (policies, STEPS - 1))
    assert largest(logits, expected[:, -STEPS:]) < TOLERANCE


@torch.no_grad()
@pytest.mark.parametrize("positions", ["original", "compact"])
@pytest.mark.parametrize(("name", "long", "spec"), CASES)
def test_a_loop_in_which_the_model_counts_equals_the_oracle(name: str, long: bool, spec: str, positions: str) -> None:
    model, inputs = built(name), inputs_of(name, long, [[0]], 4.0 if long else 0.5)
    fed = torch.tensor([[11, 12, 13, 14]])
    with vlmprune.prune(model, SPECS[spec], positions=positions) as session:
        out = model(**inputs, use_cache=True)
        logits = [out.logits[:, -1]]
        for step in range(3):
            out = model(input_ids=fed[:, step : step + 1], **behind(cache_of(out)))
            logits.append(out.logits[:, -1])
    policies = policies_of(SPECS[spec], name, positions)
    expected = due(name, long, [[0]], inputs, fed, session.last, (policies, 0))
    assert largest(torch.stack(logits, dim=1), expected) < TOLERANCE


@torch.no_grad()
def test_beams_and_prompt_lookup_behind_a_long_video() -> None:
    model, inputs = built("qwen2_5_vl"), inputs_of("qwen2_5_vl", True, [[0], [1]], 4.0)
    for positions in ("original", "compact"):
        with vlmprune.prune(model, "divprune:0.3", positions=positions):
            beams = model.generate(**inputs, num_beams=2, max_new_tokens=STEPS, do_sample=False)
            plain = model.generate(**inputs, max_new_tokens=STEPS, do_sample=False, use_cache=False, num_beams=2)
            assert torch.equal(beams, plain)
            one = extend("qwen2_5_vl", inputs_of("qwen2_5_vl", True, [[0]], 4.0), torch.tensor([[11, 12, 13, 11, 12]]))
            greedy = model.generate(**one, max_new_tokens=12, do_sample=False)
            assert torch.equal(
                greedy, model.generate(**one, max_new_tokens=12, do_sample=False, prompt_lookup_num_tokens=3)
            )


@torch.no_grad()
@pytest.mark.parametrize("off", [1, -1])
@pytest.mark.parametrize("long", [True, False])
def test_ids_that_go_on_in_neither_way_are_refused(long: bool, off: int) -> None:
    model, inputs = built("qwen2_5_vl"), inputs_of("qwen2_5_vl", long, [[0]], 4.0 if long else 0.5)
    positions = positions_of("qwen2_5_vl", inputs)
    with vlmprune.prune(model, "divprune:0.3"):
        out = model(**inputs, use_cache=True)
        with pytest.raises(vlmprune.UserError, match="do not go on where"):
            model(input_ids=QUESTION[:, :1], position_ids=positions[..., -1:] + 1 + off, **behind(cache_of(out)))


@torch.no_grad()
@pytest.mark.parametrize("method", ["divprune", "fastv@2"])
def test_a_row_that_keeps_everything_keeps_its_ids(method: str) -> None:
    """Beside one that is cut, under compact positions: a row of a batch is what it is alone, the unpruned model."""
    name, samples = "qwen2_5_vl", [[0], [1]]  # 32 and 36 slots
    model, inputs = built(name), inputs_of(name, True, samples, 4.0)
    with vlmprune.prune(model, method, [[32], [20]], positions="compact"):
        together = generate(model, inputs)[1]
    single = {**alone(videos(name, True), samples, 0), "second_per_grid_ts": torch.tensor([4.0])}
    assert largest(together[0], generate(model, single)[1][0]) < TOLERANCE
