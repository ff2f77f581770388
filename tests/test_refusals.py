"""A made-up family for every kind of influence that the runtime does not see: refused by name, with the reason."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from harness import RAGGED
from torch import nn

import vlmprune
from vlmprune import UserError
from vlmprune.models import Misfit
from vlmprune.testing import prompt
from vlmprune.testing.generic import USUAL


def seer(change: Callable[[Any], None]) -> Any:
    """A model of the usual layout, of a family that nobody knows, with something unusual in it."""
    model = USUAL["deepseek_vl"].build()
    kind = type(model)
    model.__class__ = type("SeerForConditionalGeneration", (kind,), {})
    model.config.model_type = "seer"
    change(model)
    return model


def text_of(model: Any) -> Any:
    return model.model.language_model


def crossing(model: Any) -> None:
    text_of(model).layers[1].cross_attn = nn.Linear(32, 32)


def kind_of_layer(model: Any) -> None:
    text_of(model).config.layer_types = ["full_attention", "wavelet_attention"] * 2


def shared_keys(model: Any) -> None:
    text_of(model).config.num_kv_shared_layers = 2


def both_directions(model: Any) -> None:
    text_of(model).layers[2].self_attn.is_causal = False


def handed(name: str, *shape: int) -> Callable[[Any], None]:
    """The language model is handed one tensor more."""

    def change(model: Any) -> None:
        text = text_of(model)
        forward = type(text).forward

        def taking(self: Any, *args: Any, **kwargs: Any) -> Any:
            kwargs.pop(name, None)
            return forward(self, *args, **kwargs)

        taking.__signature__ = inspect.signature(forward)  # type: ignore[attr-defined]
        text.__class__ = type("SeerTextModel", (type(text),), {"forward": taking})
        text.register_forward_pre_hook(
            lambda module, args, kwargs: (args, {**kwargs, name: torch.zeros(shape)}), with_kwargs=True
        )

    return change


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (crossing, "decoder layer 1 looks at images by cross_attn"),
        (kind_of_layer, r"kind unknown to vlmprune \(wavelet_attention\)"),
        (shared_keys, "share keys and values"),
        (both_directions, "decoder layer 2 attends in both directions"),
    ],
)
def test_refused_at_the_start(change: Callable[[Any], None], reason: str) -> None:
    with pytest.raises(Misfit, match=rf"cannot prune a Seer.* \(model_type 'seer'\): .*{reason}") as caught:
        vlmprune.prune(seer(change), "divprune", keep=0.5)
    assert "\n" not in str(caught.value) and caught.value.reason in str(caught.value)


@pytest.mark.parametrize("name", ["cross_attention_states", "layer_gates"])
@torch.no_grad()
def test_refused_at_the_first_prompt(name: str) -> None:
    model, inputs = seer(handed(name, 2, 40, 4, 8)), prompt(USUAL["deepseek_vl"], RAGGED)
    expected = model(**inputs).logits
    with (
        vlmprune.prune(model, "divprune", keep=0.5),
        pytest.raises(UserError, match=f"seer hands its language model '{name}'"),
    ):
        model(**inputs)
    assert torch.equal(expected, model(**inputs).logits)


def test_the_family_itself_is_pruned() -> None:
    """Without any of that."""
    model, inputs = seer(lambda model: None), prompt(USUAL["deepseek_vl"], RAGGED)
    with vlmprune.prune(model, "divprune", keep=0.5) as session:
        model(**inputs)
    assert all(after < before for before, after in session.last.tokens)
