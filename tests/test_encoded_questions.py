"""A picture encoded once, and several questions about it: `{**encoded.inputs(), **new_ids}`."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from harness import RAGGED, TEXT, built, generate, inputs_of, text_part, with_specs

import vlmprune
from vlmprune.core.method import PixelMethod
from vlmprune.testing import FAMILIES, prompt

METHODS = [name for name in vlmprune.METHODS if not issubclass(vlmprune.METHODS[name], PixelMethod)]
ITS_OWN = ["downsample:0.5", "tome(inside=True):0.5", "downsample:0.9 > fastv@2:0.5"]  # the encoder works for it alone


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@cache
def encoded(family: str) -> Any:
    return vlmprune.encode_images(built(family), inputs_of(family, RAGGED), METHODS)


def asked(family: str, seed: int, text: int) -> dict[str, Any]:
    """The same images in a prompt of other words, and of another length."""
    return prompt(FAMILIES[family], RAGGED, seed, text)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
@pytest.mark.parametrize("name", METHODS)
def test_each_question_is_answered_as_with_the_plain_inputs(name: str, family: str) -> None:
    """Bit for bit, also by methods that the question guides."""
    model = built(family)
    with vlmprune.prune(model, name, keep=0.4) as session:
        for seed, text in ((0, 7), (40, 9), (80, 12)):
            inputs = asked(family, seed, text)
            plain, kept = generate(model, inputs), session.last.kept
            again = generate(model, {**encoded(family).inputs(), **text_part(inputs)})
            assert torch.equal(plain[0], again[0]) and torch.equal(plain[1], again[1])
            assert all(torch.equal(a, b) for x, y in zip(kept, session.last.kept, strict=True) for a, b in zip(x, y))


@with_specs(["hiprune:0.4 > fastv@2:0.5", "cdpruner:0.4"])
def test_on_every_family(family: str, spec: str) -> None:
    model, once = built(family), vlmprune.encode_images(built(family), inputs_of(family, RAGGED), spec)
    with vlmprune.prune(model, spec):
        inputs = asked(family, 40, 9)
        plain, again = generate(model, inputs), generate(model, {**once.inputs(), **text_part(inputs)})
    assert torch.equal(plain[0], again[0]) and torch.equal(plain[1], again[1])


def test_the_unpruned_model_takes_them_too() -> None:
    inputs = asked("llava", 40, 9)
    plain = generate(built("llava"), inputs)[1]
    assert torch.equal(plain, generate(built("llava"), {**encoded("llava").inputs(), **text_part(inputs)})[1])


@pytest.mark.parametrize("spec", ITS_OWN)
def test_methods_for_which_the_encoder_works_alone_are_refused(spec: str) -> None:
    with (
        pytest.raises(vlmprune.UserError, match="pass pixel_values, not encoded images"),
        vlmprune.prune(built("llava"), spec),
    ):
        generate(built("llava"), encoded("llava").inputs())


def test_what_was_not_read_and_what_does_not_fit() -> None:
    model, inputs = built("llava"), inputs_of("llava", RAGGED)
    once = vlmprune.encode_images(model, inputs, "divprune")
    with pytest.raises(vlmprune.UserError, match="name it in encode_images"), vlmprune.prune(model, "hiprune:0.4"):
        generate(model, once.inputs())
    other = {name: value for name, value in prompt(FAMILIES["llava"], [[0], [1]]).items() if name in TEXT}
    with vlmprune.prune(model, "divprune:0.4"):
        with pytest.raises(ValueError, match="do not match"):  # two images where three were encoded
            generate(model, {**once.inputs(), **other})
        with pytest.raises(ValueError, match="both"):
            generate(model, {**once.inputs(), **inputs})
