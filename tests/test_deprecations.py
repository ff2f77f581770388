"""Nothing that vlmprune does is deprecated in the libraries of the window: it says no more than the model alone."""

from __future__ import annotations

import logging
import warnings
from typing import Any

import pytest
import torch
from harness import STEPS, built, inputs_of
from transformers.utils.generic import ModelOutput
from versions import behind, cache_of, deprecations

import vlmprune
from vlmprune.bench.timing import generate as timed
from vlmprune.doctor import examine
from vlmprune.testing import FAMILIES, prompt
from vlmprune.testing.generic import USUAL

SPECS = ("divprune:0.5", "fastv@2:0.3", "visionzip:0.6 > fastv@2:0.5")  # before the LLM, inside it, and made anew
ONE: list[list[int | None]] = [[0, 1]]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@torch.no_grad()
def use(model: Any, inputs: dict[str, Any]) -> None:
    """What users do: decoding, a static cache, and a loop by hand."""
    for options in ({}, {"cache_implementation": "static", "disable_compile": True}):
        options = {"max_new_tokens": STEPS, "do_sample": False, "return_dict_in_generate": True, **options}
        model.generate(**inputs, **options)
    out = model(**{name: value for name, value in inputs.items() if name != "attention_mask"}, use_cache=True)
    model(input_ids=out.logits[:, -1:].argmax(-1), **behind(cache_of(out)))


@pytest.mark.parametrize("family", ["llava", "llava_next", "qwen2_5_vl", "qwen3_vl", "qwen3_5", "gemma3", "smolvlm"])
def test_pruning_calls_nothing_deprecated(family: str) -> None:
    model, inputs = built(family), inputs_of(family, ONE)
    with deprecations() as vanilla:
        use(model, inputs)
    with deprecations() as pruned:
        for spec in SPECS:
            with vlmprune.prune(model, spec):
                use(model, inputs)
    assert set(pruned) <= set(vanilla)
    assert not [sentence for sentence in vanilla if "past_key_values" in sentence]  # the tests' own names are current


@pytest.mark.usefixtures("unadapted")
def test_the_generic_adapter_calls_nothing_deprecated() -> None:
    model, inputs = USUAL["aya_vision"].build(), prompt(USUAL["aya_vision"], ONE)
    with deprecations() as vanilla:
        use(model, inputs)
    with deprecations() as pruned, vlmprune.prune(model, "divprune:0.5 > fastv@2:0.5"):
        use(model, inputs)
    assert set(pruned) <= set(vanilla)


def test_doctor_and_timing_call_nothing_deprecated() -> None:
    model, inputs = FAMILIES["llava"].build(), prompt(FAMILIES["llava"], [[0]])
    with deprecations() as said:
        examine("llava", model, inputs)
        _, counts = timed(model, inputs, vlmprune.recipe("divprune:0.5"), new_tokens=2)
    assert counts.kv_bytes > 0
    assert not said


def test_what_is_deprecated_is_noted() -> None:
    """Negative control: warnings of Python's, and those that transformers writes once into its log."""
    logger: Any = logging.getLogger("transformers.somewhere")
    for _ in range(2):
        with deprecations() as said:
            warnings.warn("`a` is going away", FutureWarning, stacklevel=1)
            logger.warning_once("`b` is deprecated")
            logger.warning_once("`c` is slow")
        assert sorted(said) == ["`a` is going away", "`b` is deprecated"]


@pytest.mark.skipif(not hasattr(ModelOutput, "past_key_values"), reason="the old name is the only one before 5.24")
def test_the_old_name_of_the_cache_is_noted() -> None:
    with deprecations() as said, torch.no_grad():
        _ = built("llava")(**inputs_of("llava", [[0]])).past_key_values
    assert len(said) == 1
