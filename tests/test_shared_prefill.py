"""The first decoder layers of a prompt, run once for several sessions: the same bits, and layers that did not run."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from harness import RAGGED, built, families, generate, inputs_of
from torch import Tensor

from vlmprune import SharedPrefill, prune
from vlmprune.bench.batch import alike
from vlmprune.core.errors import UserError
from vlmprune.models import adapter_for
from vlmprune.runtime.session import Session

Answer = tuple[Tensor, Tensor]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def answer(session: Session, inputs: dict[str, Any], shared: SharedPrefill | None = None, **options: Any) -> Answer:
    session.share(shared)
    with session:
        return generate(session.model, inputs, **options)


def same(a: Answer, b: Answer) -> bool:
    return torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])


@families
def test_sessions_take_what_an_earlier_one_left(family: str) -> None:
    model, inputs, shared = built(family), inputs_of(family, RAGGED), SharedPrefill(2)
    deepest = min(2, prune(model, "random@2:0.5").untouched)
    for spec in ("fastv@2:0.5", "fastv@2:0.25", "random@2:0.5", "random@2:0.25"):  # a deeper one behind a shallow one
        try:
            session = prune(model, spec)
        except UserError:
            continue  # a recurrent layer has no attention map
        plain = answer(session, inputs)
        before = shared.taken
        assert same(answer(session, inputs, shared), plain), spec
        assert session.untouched <= deepest
    assert shared.taken - before == deepest


@pytest.mark.parametrize(
    ("spec", "layers"),
    [
        ("divprune:0.5", 0),
        ("divprune:0.5 > fastv@2:0.5", 0),
        ("random@3:0.5", 3),
        ("fastv@3:0.5", 2),
        ("dart@2:0.5", 1),
    ],
)
def test_layers_that_a_method_leaves_alone(spec: str, layers: int) -> None:
    assert prune(built("llava"), spec).untouched == layers


def test_the_layers_do_not_run_again() -> None:
    model, inputs, shared = built("llava"), inputs_of("llava", RAGGED), SharedPrefill(1)
    first = adapter_for(model).decoder_layers[0].mlp
    ran: list[int] = []
    handle = first.register_forward_hook(lambda *_: ran.append(1))
    try:
        for spec, due in (("fastv@2:0.5", 3), ("fastv@2:0.25", 2), ("dart@2:0.5", 2)):  # a prefill and two more tokens
            ran.clear()
            answer(prune(model, spec), inputs, shared, max_new_tokens=3)
            assert len(ran) == due, spec
    finally:
        handle.remove()


def test_another_prompt_runs_as_always() -> None:
    """Also one with the same pictures, other padding, several beams, or what is recorded inside the layers."""
    model, shared = built("llava"), SharedPrefill(2)
    session, inputs = prune(model, "random@2:0.5"), inputs_of("llava", RAGGED)
    answer(session, inputs, shared)
    other = inputs_of("llava", RAGGED, seed=3)
    words = {**inputs, "input_ids": torch.where(inputs["input_ids"] == 35, 36, inputs["input_ids"])}
    assert not torch.equal(words["input_ids"], inputs["input_ids"])
    hidden = {**inputs, "attention_mask": inputs["attention_mask"].clone()}
    hidden["attention_mask"][0, -1] = 0
    for changed in (other, words, hidden):
        assert same(answer(session, changed, shared), answer(session, changed))
    assert same(answer(session, inputs, shared, num_beams=2), answer(session, inputs, num_beams=2))
    eager = built("llava", "eager")
    kept = SharedPrefill(2)
    answer(prune(eager, "random@2:0.5"), inputs, kept)
    session = prune(eager, "random@2:0.5")
    session.share(kept)
    with session, torch.no_grad():
        assert len(eager(**inputs, output_attentions=True).attentions) == len(adapter_for(eager).decoder_layers)
    assert shared.taken == kept.taken == 0


def test_pictures_that_see_themselves_otherwise_are_another_prompt() -> None:
    model, shared, inputs = built("gemma3"), SharedPrefill(1), inputs_of("gemma3", RAGGED)
    causal = {**inputs, "token_type_ids": torch.zeros_like(inputs["token_type_ids"])}
    session = prune(model, "random@2:0.5")
    first, second = answer(session, inputs), answer(session, causal)
    assert not torch.equal(first[1], second[1])
    assert same(answer(session, inputs, shared), first) and same(answer(session, causal, shared), second)
    assert shared.taken == 0


def test_a_run_that_fails_leaves_nothing_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs, shared = built("llava"), inputs_of("llava", RAGGED), SharedPrefill(2)
    session = prune(model, "random@2:0.5")
    layer = adapter_for(model).decoder_layers[1]

    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(layer.mlp, "forward", broken)
        with pytest.raises(RuntimeError, match="out of memory"):
            answer(session, inputs, shared)
    plain = answer(session, inputs)
    assert same(answer(session, inputs, shared), plain) and same(answer(session, inputs, shared), plain)
    assert "forward" not in layer.__dict__


def test_prompts_of_about_one_length_are_asked_together() -> None:
    assert alike([100, 125, 101]) == [[0, 1, 2]]
    assert alike([600, 100, 126, 110, 590]) == [[1, 3], [2], [0, 4]]
