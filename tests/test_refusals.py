"""A made-up family for every kind of influence that the runtime does not see: refused by name, with the reason."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from harness import RAGGED
from torch import nn

import vlmprune
from vlmprune import UserError
from vlmprune.models import Misfit, adapter_for
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


def reused_keys(model: Any) -> None:
    text_of(model).config.kv_sharing_modes = ["store", "reuse"] * 2


def ids_alone(model: Any) -> None:
    def forward(self: Any, input_ids: Any = None, **kwargs: Any) -> Any: ...

    text_of(model).__class__ = type("SeerTextModel", (type(text_of(model)),), {"forward": forward})


def no_attention(model: Any) -> None:
    text_of(model).layers[3].self_attn = nn.Identity()


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
        (reused_keys, "share keys and values"),
        (ids_alone, "looked for inputs_embeds among the arguments of its SeerTextModel, found none"),
        (no_attention, "looked for self_attn, attn or attention in decoder layer 3, found none"),
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


def given(name: str, make: Callable[[torch.Tensor], Any]) -> Callable[[Any], None]:
    """The language model is called with something of another form, made from its embeddings [B, S, D]."""

    def change(model: Any) -> None:
        text_of(model).register_forward_pre_hook(
            lambda module, args, kwargs: (args, {**kwargs, name: make(kwargs["inputs_embeds"])}), with_kwargs=True
        )

    return change


def every_token_sees_all(embeds: torch.Tensor) -> torch.Tensor:
    rows, length, _ = embeds.shape
    return torch.ones(rows, 1, length, length, dtype=torch.bool)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (given("position_ids", lambda embeds: torch.zeros(2, *embeds.shape[:2]).long()), "seer counts positions in a"),
        (given("attention_mask", lambda embeds: object()), "seer makes attention masks of its own"),
        (given("attention_mask", lambda embeds: {"full_attention": object()}), "seer makes attention masks of its own"),
        (
            given("attention_mask", every_token_sees_all),
            "In seer, tokens of an image see each other in both",
        ),
    ],
    ids=["positions", "mask", "masks", "two-way mask"],
)
@torch.no_grad()
def test_a_form_that_is_not_known_is_refused_at_the_first_prompt(change: Callable[[Any], None], reason: str) -> None:
    model, inputs = seer(change), prompt(USUAL["deepseek_vl"], RAGGED)
    with vlmprune.prune(model, "divprune", keep=0.5), pytest.raises(UserError, match=reason) as caught:
        model(**inputs)
    assert "\n" not in str(caught.value)


def tower_of(model: Any) -> Any:
    return model.model.vision_model


def two_stacks(model: Any) -> None:
    [stack] = [module for module in tower_of(model).modules() if isinstance(module, nn.ModuleList)]
    tower_of(model).later = nn.ModuleList([copy.deepcopy(stack[0])])


def windows(model: Any) -> None:
    model.config.vision_config.window_size = 8


def resampler(model: Any) -> None:
    model.model.query_resampler = type("Resampler", (nn.Linear,), {})(2, 2)


def attention_between(model: Any) -> None:
    model.model.pool = nn.ModuleDict({"q_proj": nn.Linear(2, 2)})


def own_attention(model: Any) -> None:
    for module in tower_of(model).modules():
        if hasattr(module, "q_proj"):
            module.forward = lambda hidden_states, *args, **kwargs: (hidden_states, None)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (two_stacks, "vlmprune found no single stack of attention layers in its vision encoder"),
        (windows, "its vision encoder attends within windows"),
        (resampler, "a resampler stands between its vision encoder and the language model"),
        (attention_between, "attention stands between its vision encoder and the language model"),
        (own_attention, "its vision encoder does not use transformers' attention functions"),
    ],
)
@torch.no_grad()
def test_an_encoder_that_is_not_known_is_not_read(change: Callable[[Any], None], reason: str) -> None:
    """Methods that read it are refused; others run."""
    model, inputs = seer(change), prompt(USUAL["deepseek_vl"], RAGGED)
    with (
        pytest.raises(
            UserError, match=f"^Methods that read the vision encoder cannot run on seer: .*{reason}"
        ) as caught,
        vlmprune.prune(model, "hiprune", keep=0.5),
    ):
        model(**inputs)
    assert "\n" not in str(caught.value)
    with vlmprune.prune(model, "divprune", keep=0.5) as session:
        model(**inputs)
    assert all(after < before for before, after in session.last.tokens)


def test_an_index_of_keys_is_refused_inside_alone() -> None:
    def indexed(model: Any) -> None:
        text_of(model).config.layer_types = ["indexed_attention"] * 4

    vlmprune.prune(seer(indexed), "divprune", keep=0.5)
    with pytest.raises(UserError, match=r"a seer can be cut before its language model only, for .* index of their own"):
        vlmprune.prune(seer(indexed), "fastv", keep=0.5)


def test_norms_by_other_names() -> None:
    """Only methods that read them are refused: at the start of a layer, and behind the last one."""
    adapter = adapter_for(seer(lambda model: None))
    for layer in adapter.decoder_layers:
        layer.first, layer.input_layernorm = layer.input_layernorm, None
        del layer.input_layernorm
    with pytest.raises(UserError, match="the norm at the start of seer's decoder layers"):
        adapter.first_norm(1)
    del adapter.text_model.norm
    with pytest.raises(UserError, match="no final norm by a name that vlmprune knows"):
        _ = adapter.final_norm


def test_the_family_itself_is_pruned() -> None:
    """Without any of that."""
    model, inputs = seer(lambda model: None), prompt(USUAL["deepseek_vl"], RAGGED)
    with vlmprune.prune(model, "divprune", keep=0.5) as session:
        model(**inputs)
    assert all(after < before for before, after in session.last.tokens)
