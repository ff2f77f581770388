"""Compiled decoding under a session: one graph, compiled once, and the answers of decoding that is not compiled."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from harness import RAGGED, built, inputs_of
from torch._dynamo.utils import counters
from transformers import CompileConfig

import vlmprune
from vlmprune.runtime import compiled

FAMILIES = ["llava", "llava_next", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "internvl"]
ONE = [[0, 1]]


def whole_graph() -> CompileConfig:
    config = CompileConfig(fullgraph=True, dynamic=False, mode="default", backend="eager")
    config._compile_all_devices = True
    return config


def answer(model: Any, inputs: dict[str, Any], **options: Any) -> torch.Tensor:
    return model.generate(**inputs, max_new_tokens=6, min_new_tokens=6, do_sample=False, **options)


@pytest.fixture
def plain_steps(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The steps that are the plain model's."""
    made: list[int] = []
    run = compiled.CompiledSteps._run
    monkeypatch.setattr(compiled.CompiledSteps, "_run", lambda *args: made.append(1) or run(*args))
    torch.compiler.reset()
    yield made


@torch.no_grad()
@pytest.mark.parametrize("spec", ["divprune:0.3", "random:1.0", "tome:0.5"])
@pytest.mark.parametrize("family", FAMILIES)
def test_one_graph(family: str, spec: str, plain_steps: list[int]) -> None:
    model, inputs = built(family), inputs_of(family, ONE)
    with vlmprune.prune(model, spec):
        expected = answer(model, inputs)
        for _ in range(2):
            counters.clear()
            found = answer(model, inputs, cache_implementation="static", compile_config=whole_graph())
            assert torch.equal(found, expected)
        assert not counters["graph_break"] and not counters["stats"]["unique_graphs"]  # the second time
    assert len(plain_steps) >= 2 * 4


@torch.no_grad()
def test_the_graph_is_the_plain_models(plain_steps: list[int]) -> None:
    """What was compiled outside of a session is used inside one, and the other way round."""
    model, inputs = built("llava"), inputs_of("llava", ONE)
    options = {"cache_implementation": "static", "compile_config": whole_graph()}
    whole = answer(model, inputs, **options)
    with vlmprune.prune(model, "divprune:0.3"):
        expected = answer(model, inputs)
        counters.clear()
        assert torch.equal(answer(model, inputs, **options), expected)
    assert torch.equal(answer(model, inputs, **options), whole)
    assert not counters["graph_break"] and counters["stats"]["unique_graphs"] <= 1


@torch.no_grad()
@pytest.mark.parametrize("spec", ["fastv@2:0.5", "divprune:0.5 > pyramiddrop@2,3:0.5"])
def test_what_needs_the_hooks_is_not_compiled(spec: str, plain_steps: list[int]) -> None:
    model, inputs = built("llava"), inputs_of("llava", ONE)
    with vlmprune.prune(model, spec):
        expected = answer(model, inputs)
        assert torch.equal(answer(model, inputs, cache_implementation="static", compile_config=whole_graph()), expected)
    assert not plain_steps


@torch.no_grad()
def test_padded_rows_are_not_compiled(plain_steps: list[int]) -> None:
    model, inputs = built("llava"), inputs_of("llava", RAGGED)
    with vlmprune.prune(model, "divprune:0.3"):
        expected = answer(model, inputs)
        assert torch.equal(answer(model, inputs, cache_implementation="static", compile_config=whole_graph()), expected)


@torch.no_grad()
def test_a_prompt_without_images(plain_steps: list[int]) -> None:
    model, ids = built("llava"), torch.tensor([[3, 4, 5]])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    expected = answer(model, inputs)
    with vlmprune.prune(model, "divprune:0.3"):
        assert torch.equal(answer(model, inputs, cache_implementation="static", compile_config=whole_graph()), expected)
    assert plain_steps
