"""What the runtime takes for granted: whatever is renamed, dropped or done otherwise is answered rightly or refused."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from harness import RAGGED, TOLERANCE, built, generate, inputs_of, oracle
from torch import nn
from transformers.cache_utils import Cache, DynamicCache

import vlmprune
from vlmprune import UserError
from vlmprune.runtime import masks
from vlmprune.runtime.cache import PrunedCacheMixin
from vlmprune.runtime.expected import CACHE, Unexpected, interface_of, unchecked

SPECS = {"before": "divprune:0.3", "inside": "fastv@2:0.3", "both": "divprune:0.5 > fastv@2:0.5"}
Wrap = Callable[[Any], None]


def wrapped(module: nn.Module, change: Callable[..., Any]) -> None:
    """Let `change(original, args, kwargs)` stand for a module's forward, under the names that it stated."""
    original = module.forward

    @functools.wraps(original)
    def forward(*args: Any, **kwargs: Any) -> Any:
        return change(original, args, kwargs)

    module.__dict__["forward"] = forward


def cache_name(module: nn.Module) -> str:
    return interface_of(module).cache or next(name for name in CACHE)


def without(*names: str) -> Callable[..., Any]:
    def change(original: Any, args: Any, kwargs: Any) -> Any:
        return original(*args, **{name: value for name, value in kwargs.items() if name not in names})

    return change


def decoding(kwargs: dict[str, Any]) -> bool:
    cache = next((value for value in kwargs.values() if isinstance(value, Cache)), None)
    return cache is not None and bool(cache.get_seq_length())


def text_by_position(model: Any) -> None:
    names = interface_of(model.model.language_model).positional

    def change(original: Any, args: Any, kwargs: Any) -> Any:
        first = [kwargs.pop(name, None) for name in names]
        return original(*first, **kwargs)

    wrapped(model.model.language_model, change)


def called_by_position(model: Any) -> None:
    """Whoever calls the text model gives its arguments by position."""
    inner, text = model.model, model.model.language_model
    names = interface_of(text).positional

    class ByPosition(type(text)):  # type: ignore[misc]
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            first = [kwargs.pop(name, None) for name in names[len(args) :]]
            return super().__call__(*args, *first, **kwargs)

    text.__class__ = ByPosition
    assert inner.language_model is text


def text_renames_cache(model: Any) -> None:
    text = model.model.language_model
    original, name = text.forward, cache_name(text)

    def forward(inputs_embeds=None, attention_mask=None, position_ids=None, kv_store=None, **kwargs):  # type: ignore
        kwargs.pop("input_ids", None)
        return original(
            inputs_embeds=inputs_embeds, attention_mask=attention_mask, position_ids=position_ids,
            **{name: kv_store}, **kwargs,
        )  # fmt: skip

    text.__dict__["forward"] = forward
    text.register_forward_pre_hook(
        lambda module, args, kwargs: (args, {"kv_store" if key in CACHE else key: v for key, v in kwargs.items()}),
        with_kwargs=True,
    )


def caller_renames_cache(model: Any) -> None:
    """The text model takes the cache under any name, and is given it under an unknown one."""
    text = model.model.language_model
    name = cache_name(text)

    def change(original: Any, args: Any, kwargs: Any) -> Any:
        return original(*args, **{name if key == "kv_store" else key: value for key, value in kwargs.items()})

    wrapped(text, change)
    text.register_forward_pre_hook(
        lambda module, args, kwargs: (args, {"kv_store" if key in CACHE else key: v for key, v in kwargs.items()}),
        with_kwargs=True,
    )


def text_renames_mask(model: Any) -> None:
    text = model.model.language_model
    original = text.forward

    def forward(inputs_embeds=None, key_mask=None, position_ids=None, past_key_values=None, **kwargs):  # type: ignore
        return original(inputs_embeds=inputs_embeds, attention_mask=key_mask, position_ids=position_ids, **kwargs)

    text.__dict__["forward"] = forward


def text_states_nothing(model: Any) -> None:
    original = model.model.language_model.forward
    model.model.language_model.__dict__["forward"] = lambda *args, **kwargs: original(*args, **kwargs)


def text_drops(*names: str) -> Wrap:
    return lambda model: wrapped(model.model.language_model, without(*names))


def text_drops_cache(model: Any) -> None:
    wrapped(model.model.language_model, without(*CACHE))


def text_drops_cache_when_decoding(model: Any) -> None:
    """As a caller of the text model that forgets the cache from the second step on."""

    def hook(module: Any, args: Any, kwargs: Any) -> Any:
        return (args, {k: v for k, v in kwargs.items() if k not in CACHE}) if decoding(kwargs) else None

    model.model.language_model.register_forward_pre_hook(hook, with_kwargs=True)


def text_counts_positions_itself(model: Any) -> None:
    def change(original: Any, args: Any, kwargs: Any) -> Any:
        positions = kwargs.get("position_ids")
        kwargs["position_ids"] = positions if positions is None else positions + 1
        return original(*args, **kwargs)

    wrapped(model.model.language_model, change)


def every_layer(change: Callable[..., Any]) -> Wrap:
    def wrap(model: Any) -> None:
        for layer in model.model.language_model.layers:
            wrapped(layer, change)

    return wrap


def every_attention(change: Callable[..., Any]) -> Wrap:
    def wrap(model: Any) -> None:
        for layer in model.model.language_model.layers:
            wrapped(layer.self_attn, change)

    return wrap


def masks_dropped(original: Any, args: Any, kwargs: Any) -> Any:
    return original(*args, **{**kwargs, "attention_mask": None})


def layer_renames_mask(model: Any) -> None:
    for layer in model.model.language_model.layers:
        original = layer.forward
        layer.__dict__["forward"] = lambda hidden_states, key_mask=None, own=original, **kwargs: own(
            hidden_states, attention_mask=key_mask, **kwargs
        )


def layer_shifted(original: Any, args: Any, kwargs: Any) -> Any:
    """The layer's rotary embedding is another one than it was given."""
    cos, sin = kwargs["position_embeddings"]
    return original(*args, **{**kwargs, "position_embeddings": (cos.roll(1, -2) * 1.01, sin.roll(1, -2))})


def a_layer_longer(original: Any, args: Any, kwargs: Any) -> Any:
    hidden = original(*args, **kwargs)
    return torch.cat([hidden[:, :1], hidden], dim=1)


def layers_swapped(model: Any) -> None:
    layers = model.model.language_model.layers

    def hook(module: Any, args: Any) -> None:
        layers[1], layers[2] = layers[2], layers[1]

    model.model.register_forward_pre_hook(hook)  # inside the block, once a forward


def layer_run_past_its_hooks(model: Any) -> None:
    class Past(nn.Module):
        def __init__(self, layer: nn.Module) -> None:
            super().__init__()
            self.__dict__["own"] = layer
            self.__dict__.update({k: v for k, v in vars(layer).items() if k in ("attention_type", "layer_idx")})

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return self.own.forward(*args, **kwargs)

    layers = model.model.language_model.layers

    def hook(module: Any, args: Any) -> None:
        if not isinstance(layers[3], Past):
            layers[3] = Past(layers[3])

    model.model.register_forward_pre_hook(hook)


def layer_twice(original: Any, args: Any, kwargs: Any) -> Any:
    first = original(*args, **kwargs)
    return original(first, *args[1:], **{k: v for k, v in kwargs.items() if k != "hidden_states"})


def text_twice(model: Any) -> None:
    inner, text = model.model, model.model.language_model

    class Twice(type(text)):  # type: ignore[misc]
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            super().__call__(*args, **{k: v for k, v in kwargs.items() if k not in CACHE}, use_cache=False)
            return super().__call__(*args, **kwargs)

    text.__class__ = Twice
    assert inner.language_model is text


def text_never(model: Any) -> None:
    text = model.model.language_model

    class Never(type(text)):  # type: ignore[misc]
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return self.forward(*args, **kwargs)

    text.__class__ = Never


def deepcopied(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {k: copy.deepcopy(v) if isinstance(v, Cache) else v for k, v in kwargs.items()}


def cache_copied_on_the_way_in(model: Any) -> None:
    model.model.language_model.register_forward_pre_hook(lambda m, a, k: (a, deepcopied(k)), with_kwargs=True)


def cache_copied_inside(model: Any) -> None:
    wrapped(model.model.language_model, lambda original, args, kwargs: original(*args, **deepcopied(kwargs)))


def rebuilt(cache: Cache) -> Cache:
    """Its keys and values in a cache that knows nothing else."""
    new = DynamicCache()
    for number, layer in enumerate(cache.layers):
        new.update(layer.keys, layer.values, number)
    return new


def carried_on(change: Callable[[Cache], Cache]) -> Wrap:
    """`generate` goes on with another object than the model returned."""

    def wrap(model: Any) -> None:
        original = model._update_model_kwargs_for_generation

        def update(*args: Any, **kwargs: Any) -> Any:
            found = original(*args, **kwargs)
            return {k: change(v) if isinstance(v, Cache) else v for k, v in found.items()}

        model.__dict__["_update_model_kwargs_for_generation"] = update

    return wrap


def output_hides_cache(model: Any) -> None:
    def change(original: Any, args: Any, kwargs: Any) -> Any:
        output = original(*args, **kwargs)
        return type(output)(last_hidden_state=output.last_hidden_state)

    wrapped(model.model.language_model, change)


def encoded_past_the_session(model: Any) -> None:
    inner = model.model
    plain = functools.partial(type(inner).get_image_features, inner)

    def change(original: Any, args: Any, kwargs: Any) -> Any:
        inner.__dict__["get_image_features"], ours = plain, inner.__dict__.get("get_image_features")
        try:
            return original(*args, **kwargs)
        finally:
            inner.__dict__["get_image_features"] = ours

    wrapped(inner, change)


WRAPS: dict[str, Wrap] = {
    "text model given arguments by position": called_by_position,
    "text model passes arguments on by position": text_by_position,
    "text model renames the cache": text_renames_cache,
    "caller renames the cache": caller_renames_cache,
    "text model renames the mask": text_renames_mask,
    "text model states no names": text_states_nothing,
    "text model drops the mask": text_drops("attention_mask"),
    "text model drops the position ids": text_drops("position_ids"),
    "text model drops the cache": text_drops_cache,
    "cache dropped when decoding": text_drops_cache_when_decoding,
    "text model counts positions itself": text_counts_positions_itself,
    "layers drop the mask": every_layer(masks_dropped),
    "layers drop the cache": every_layer(without(*CACHE)),
    "layers rename the mask": layer_renames_mask,
    "layers turn otherwise": every_layer(layer_shifted),
    "layers add a token": every_layer(a_layer_longer),
    "layers run twice": every_layer(layer_twice),
    "layers in another order": layers_swapped,
    "a layer run past its hooks": layer_run_past_its_hooks,
    "attention drops the mask": every_attention(masks_dropped),
    "attention drops the cache": every_attention(without(*CACHE)),
    "text model called twice": text_twice,
    "text model run past its hooks": text_never,
    "cache copied on the way in": cache_copied_on_the_way_in,
    "cache copied inside": cache_copied_inside,
    "generate carries on a copy": carried_on(copy.deepcopy),
    "generate carries on a rebuilt cache": carried_on(rebuilt),
    "output hides the cache": output_hides_cache,
    "images encoded past the session": encoded_past_the_session,
}


def answers(model: Any, inputs: dict[str, Any], spec: str) -> tuple[torch.Tensor, torch.Tensor]:
    with vlmprune.prune(model, spec):
        return generate(model, inputs)


CASES = [("llava", name, RAGGED) for name in SPECS] + [("llava", "inside", [[0]])]
CASES += [("qwen2_5_vl", "both", RAGGED), ("gemma3", "inside", RAGGED)]


@pytest.mark.parametrize(("family", "name", "samples"), CASES, ids=lambda value: str(value).replace(" ", ""))
@pytest.mark.parametrize("wrap", WRAPS.values(), ids=WRAPS)
def test_answered_rightly_or_refused(wrap: Wrap, family: str, name: str, samples: Any) -> None:
    spec = SPECS[name]
    inputs = inputs_of(family, samples)
    tokens, logits = expected(family, spec, str(samples))
    model = copy.deepcopy(built(family))
    wrap(model)
    try:
        found = answers(model, inputs, spec)
    except (UserError, TypeError, AttributeError, ValueError, RuntimeError, IndexError):
        return  # no answer: ours, or the wrapped model's own refusal
    assert torch.equal(found[0], tokens)
    assert float((found[1] - logits).abs().max()) < TOLERANCE


@functools.cache
def expected(family: str, spec: str, samples: str) -> tuple[torch.Tensor, torch.Tensor]:
    return answers(built(family), inputs_of(family, eval(samples)), spec)


@pytest.mark.parametrize(
    "name", ["attention drops the mask", "layers turn otherwise", "text model drops the position ids"]
)
def test_the_checks_make_the_difference(name: str) -> None:
    """With the checks switched off, the same is answered, and wrongly: the test above can fail."""
    spec, model = SPECS["both"], copy.deepcopy(built("llava"))
    _, logits = expected("llava", spec, str(RAGGED))
    WRAPS[name](model)
    with unchecked():
        _, found = answers(model, inputs_of("llava", RAGGED), spec)
    assert float((found - logits).abs().max()) > 100 * TOLERANCE
    with pytest.raises(Unexpected, match="transformers"):
        answers(model, inputs_of("llava", RAGGED), spec)


def test_a_mask_function_that_takes_other_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    def create_causal_mask(config: Any, inputs_embeds: Any, attention_mask: Any, cache: Any) -> None:
        return None

    monkeypatch.setitem(masks.LAYER_PATTERN_TO_MASK_FUNCTION_MAPPING, "full_attention", create_causal_mask)
    with pytest.raises(Unexpected, match="create_causal_mask takes no position_ids"):
        answers(built("llava"), inputs_of("llava", RAGGED), SPECS["before"])


def test_a_cache_that_tells_other_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(PrunedCacheMixin, "get_seq_length")  # as if transformers asked by another method
    with pytest.raises(Unexpected, match="does not tell how many tokens"):
        answers(built("llava"), inputs_of("llava", RAGGED), SPECS["before"])


@pytest.mark.parametrize("lost", ["get_query_offset", "crop"])
def test_caches_without_a_method_that_is_needed(lost: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(Cache, lost)
    with pytest.raises(Unexpected, match=f"caches have no {lost}"):
        answers(built("llava"), inputs_of("llava", RAGGED), SPECS["before"])


def test_the_sentence_says_what_was_found_and_what_to_do() -> None:
    model = copy.deepcopy(built("llava"))
    every_layer(masks_dropped)(model)
    with pytest.raises(Unexpected) as refusal:
        answers(model, inputs_of("llava", RAGGED), SPECS["inside"])
    for part in ("LlavaForConditionalGeneration", "transformers 5.", "install a version"):
        assert part in str(refusal.value)


def test_without_a_wrapper_it_equals_the_oracle() -> None:
    """What the tests above compare with is right."""
    inputs, spec = inputs_of("llava", RAGGED), SPECS["both"]
    with vlmprune.prune(built("llava"), spec, positions="original") as session:
        tokens, logits = generate(built("llava"), inputs)
    right = oracle("llava", RAGGED, inputs, tokens, session.last, {})
    assert float((logits - right).abs().max()) < TOLERANCE
