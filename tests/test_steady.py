"""Steps of decoding without hooks inside the text model: they are what watched steps would be, or they are not made."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from harness import RAGGED, TOLERANCE, built, extend, generate, inputs_of, largest
from torch import Tensor
from transformers.cache_utils import Cache
from versions import behind, cache_of

import vlmprune
from vlmprune.runtime import step_hooks
from vlmprune.runtime.expected import Unexpected
from vlmprune.runtime.steady import Step

SPECS = {
    "before": "divprune:0.3",
    "inside": "fastv@2:0.3",
    "renumbered": "pyramiddrop@1,2,3:0.3",
    "both": "divprune:0.5 > pyramiddrop@2,3:0.5",
}
ONE = [[0, 1]]


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Step]]:
    """The steps that are made without hooks."""
    made: list[Step] = []
    enter = Step.enter
    monkeypatch.setattr(Step, "enter", lambda self, given: made.append(self) or enter(self, given))
    yield made


def watched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_hooks, "fits", lambda *args: False)


def hooks(model: Any) -> int:
    """How many are on the decoder layers, their attention and the rotary embedding."""
    inside = [model.model.language_model.rotary_emb]
    for layer in model.model.language_model.layers:
        inside += [layer, layer.self_attn]
    return sum(len(module._forward_pre_hooks) for module in inside)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "qwen3_vl"])
@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("positions", ["original", "compact"])
def test_equal_to_watched_steps(
    family: str, name: str, positions: str, steps: list[Step], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, inputs = built(family), inputs_of(family, ONE)
    with vlmprune.prune(model, SPECS[name], positions=positions):
        tokens, logits = generate(model, inputs)
        assert len(steps) == 3  # of four behind the prefill, the first is watched
        assert steps[0].renumbers == (positions == "compact" and name != "before")
        watched(monkeypatch)
        again = generate(model, inputs)
    assert len(steps) == 3
    assert torch.equal(tokens, again[0]) and largest(logits, again[1]) < 1e-5


@pytest.mark.parametrize("name", ["inside", "renumbered"])
def test_beams(name: str, steps: list[Step], monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = built("llava"), inputs_of("llava", ONE)
    with vlmprune.prune(model, SPECS[name], positions="compact"):
        found = model.generate(**inputs, num_beams=3, max_new_tokens=6, do_sample=False)
        assert steps
        watched(monkeypatch)
        assert torch.equal(found, model.generate(**inputs, num_beams=3, max_new_tokens=6, do_sample=False))


def test_hooks_are_there_where_they_are_needed(steps: list[Step]) -> None:
    model, inputs = built("llava"), inputs_of("llava", ONE)
    with vlmprune.prune(model, SPECS["inside"]) as session:
        whole = hooks(model)
        assert whole > 0
        generate(model, inputs)
        assert steps and hooks(model) == 0
        first = session.last.kept
        generate(model, inputs)
        assert all(torch.equal(a, b) for a, b in zip(first[0], session.last.kept[0], strict=True))
        copied = copy.deepcopy(model)
    assert hooks(model) == hooks(copied) == 0


@torch.no_grad()
def step(model: Any, cache: Cache, tokens: Tensor) -> Tensor:
    return model(input_ids=tokens, **behind(cache)).logits


@torch.no_grad()
def prefilled(model: Any, inputs: dict[str, Tensor], single_steps: int) -> Cache:
    cache = cache_of(model(**inputs, use_cache=True))
    for _ in range(single_steps):
        step(model, cache, torch.tensor([[5]]))
    return cache


@pytest.mark.parametrize("name", SPECS)
def test_several_tokens_and_single_ones_in_turns(name: str, steps: list[Step], monkeypatch: pytest.MonkeyPatch) -> None:
    """As an assistant's drafts are checked, and a cache is cropped between."""
    model, inputs = built("llava"), inputs_of("llava", ONE)

    def run() -> list[Tensor]:
        cache = prefilled(model, inputs, 3)
        found = [step(model, cache, torch.tensor([[5, 6, 7]])), step(model, cache, torch.tensor([[8]]))]
        cache.crop(-2)
        return [*found, step(model, cache, torch.tensor([[9]])), step(model, cache, torch.tensor([[4, 3]]))]

    with vlmprune.prune(model, SPECS[name], positions="compact"):
        found = run()
        assert len(steps) == 4
        watched(monkeypatch)
        again = run()
    assert all(largest(a, b) < 1e-5 for a, b in zip(found, again, strict=True))


def test_padding_is_watched(steps: list[Step]) -> None:
    model, inputs = built("llava"), inputs_of("llava", RAGGED)
    with vlmprune.prune(model, SPECS["inside"]):
        generate(model, inputs)
    assert not steps


def test_another_kernel_is_watched(steps: list[Step]) -> None:
    model = copy.deepcopy(built("llava"))
    with vlmprune.prune(model, SPECS["inside"]):
        cache = prefilled(model, inputs_of("llava", ONE), 2)
        assert len(steps) == 1
        copied = copy.deepcopy(cache)
        right = step(model, cache, torch.tensor([[5]]))
        assert len(steps) == 2
        model.set_attn_implementation("eager")
        assert largest(step(model, copied, torch.tensor([[5]])), right) < TOLERANCE
    assert len(steps) == 2


def test_another_session_watches_first(steps: list[Step]) -> None:
    model = built("llava")
    with vlmprune.prune(model, SPECS["inside"]):
        cache = prefilled(model, inputs_of("llava", ONE), 2)
    with vlmprune.prune(model, SPECS["before"]):
        step(model, cache, torch.tensor([[5]]))
        assert len(steps) == 1
        step(model, cache, torch.tensor([[5]]))
        assert len(steps) == 2


def test_a_cache_that_does_not_grow_is_noticed() -> None:
    model = built("llava")
    with vlmprune.prune(model, SPECS["inside"]):
        cache = prefilled(model, inputs_of("llava", ONE), 2)
        layer: Any = cache.layers[3]
        layer.update = lambda keys, values, *args, **kwargs: (layer.keys, layer.values)
        with pytest.raises(Unexpected, match="did not grow"):
            step(model, cache, torch.tensor([[5]]))


def test_a_further_turn(steps: list[Step], monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = built("qwen2_5_vl"), inputs_of("qwen2_5_vl", ONE)

    def turns() -> tuple[Tensor, Tensor]:
        out = model.generate(**inputs, max_new_tokens=4, do_sample=False, return_dict_in_generate=True)
        new = torch.cat([out.sequences[:, inputs["input_ids"].shape[1] :], torch.tensor([[7, 8, 9]])], dim=1)
        longer = extend("qwen2_5_vl", inputs, new)
        longer = {name: value for name, value in longer.items() if "pixel" not in name and "grid" not in name}
        return generate(model, {**longer, **behind(cache_of(out))})

    with vlmprune.prune(model, SPECS["both"], positions="compact"):
        found = turns()
        assert len(steps) > 3
        watched(monkeypatch)
        again = turns()
    assert torch.equal(found[0], again[0]) and largest(found[1], again[1]) < 1e-5
