"""What methods inside the LLM read equals what eager attention, and hooks on an unpruned model, show."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from harness import RAGGED, Samples, built, inputs_of
from harness_spies import InnerSpy, Onlooker
from torch import Tensor
from versions import behind, cache_of

import vlmprune
from vlmprune.core.needs import Need
from vlmprune.core.recipe import Recipe, Stage
from vlmprune.core.signals import (
    DecoderKeys,
    DecoderStates,
    EnteredEmbeddings,
    HiddenStates,
    LastQueryAttention,
    LayerInput,
    LayerOutput,
    MlpInput,
    PromptText,
    RotaryGain,
    TextQueryAttention,
    TextSelfAttention,
    VisualQueryAttention,
)
from vlmprune.models import adapter_for
from vlmprune.models.base import Adapter
from vlmprune.testing import FAMILIES, image_numbers, prompt
from vlmprune.testing.decoder import watched
from vlmprune.testing.weights import IMAGE, SLIDING, TEXT, TOWER, builder

EXACT = 1e-5
HIDDEN = 1e-4
SIX = ["llava", "qwen2_5_vl", "qwen3_vl", "internvl", "gemma3", "qwen3_5"]
NEW_IMAGES = ["llava", "internvl", "gemma3"]  # families that take a new image behind a cache
NEEDS: dict[str, Need] = {
    "last": LastQueryAttention(),
    "text": TextQueryAttention(),
    "text max": TextQueryAttention(heads="max"),
    "text all": TextQueryAttention(heads="all"),
    "visual": VisualQueryAttention(),
    "visual max": VisualQueryAttention(heads="max"),
    "among text": TextSelfAttention(),
    "hidden": HiddenStates(),
    "input": LayerInput(),
    "output": LayerOutput(),
    "mlp": MlpInput(),
    "final": DecoderStates(),
    "following": DecoderStates(norm="next"),
    "entered": EnteredEmbeddings(),
    "words": PromptText(after_image=True),
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    torch.set_num_threads(1)
    with torch.no_grad():
        yield


def eager_of(family: str) -> Adapter:
    return adapter_for(built(family, "eager"))


def shown(family: str, layer: int, needs: dict[str, Need]) -> list[dict[str, Any]]:
    """Signals of each image of a ragged batch, in order."""
    spy = InnerSpy(layer, needs)
    with vlmprune.prune(built(family), Recipe((Stage(spy, 0.5),))):
        built(family)(**inputs_of(family, RAGGED))
    return spy.seen


def columns(family: str, samples: Samples = RAGGED) -> list[tuple[int, Tensor, Tensor]]:
    """(row, columns of the image, columns of the text after it) of each image of a batch."""
    inputs, numbers = inputs_of(family, samples), image_numbers(FAMILIES[family], samples)
    found = []
    for row, images in enumerate(samples):
        text = (numbers[row] < 0) & (inputs["attention_mask"][row] == 1)
        for image in range(len(images)):
            own = (numbers[row] == image).nonzero().squeeze(1)
            after = text.nonzero().squeeze(1)
            found.append((row, own, after[after > own[-1]]))
    return found


def close(got: Tensor, wanted: Tensor, tolerance: float = EXACT) -> None:
    assert got.shape == wanted.shape
    assert float((got - wanted).abs().max()) < tolerance


@pytest.mark.parametrize("family", SIX)
def test_signals_equal_eager_attentions_and_hooks(family: str) -> None:
    layer = 2
    with watched(eager_of(family), layer - 1) as eager:
        built(family, "eager")(**inputs_of(family, RAGGED))
    text_model = adapter_for(built(family, "eager")).text_model
    norms = {"final": text_model.norm, "following": text_model.layers[layer].input_layernorm}
    for seen, (row, image, text) in zip(shown(family, layer, NEEDS), columns(family), strict=True):
        maps = eager["maps"][row]
        close(seen["last"], maps.mean(0)[-1, image])
        close(seen["text"], maps.mean(0)[text][:, image])
        close(seen["text max"], maps.amax(0)[text][:, image])
        close(seen["text all"], maps[:, text][..., image])
        close(seen["visual"], maps.mean(0)[image][:, image].mean(0))
        close(seen["visual max"], maps.amax(0)[image][:, image].mean(0))
        close(seen["among text"], maps[:, text][..., text])
        close(seen["hidden"].visual, eager["next"][row, image], HIDDEN)
        close(seen["hidden"].text, eager["next"][row, text], HIDDEN)
        close(seen["input"], eager["input"][row, image], HIDDEN)
        close(seen["output"], eager["output"][row, image], HIDDEN)
        close(seen["mlp"], eager["mlp"][row, image], HIDDEN)
        for name, norm in norms.items():
            close(seen[name].visual, norm(eager["next"])[row, image], HIDDEN)
            close(seen[name].text, norm(eager["next"])[row, text], HIDDEN)
        close(seen["entered"], eager["embeds"][row, image])
        close(seen["words"], eager["embeds"][row, text])


@pytest.mark.parametrize("layer", [2, 3])  # Gemma 3's sliding layer and its full one
@pytest.mark.parametrize("family", SIX)
def test_looking_ahead_shows_what_the_next_layer_does(family: str, layer: int) -> None:
    needs = {"ahead": LastQueryAttention(ahead=True), "visual": VisualQueryAttention(ahead=True)}
    if family == "qwen3_5" and layer == 2:
        with pytest.raises(vlmprune.UserError, match="linear attention"):
            shown(family, layer, needs)
        return
    with watched(eager_of(family), layer) as eager:
        built(family, "eager")(**inputs_of(family, RAGGED))
    for seen, (row, image, _) in zip(shown(family, layer, needs), columns(family), strict=True):
        close(seen["ahead"], eager["maps"][row].mean(0)[-1, image])
        close(seen["visual"], eager["maps"][row].mean(0)[image][:, image].mean(0))


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "gemma3"])
def test_keys_that_are_read_ahead_are_those_of_the_next_layer(family: str) -> None:
    ahead = shown(family, 2, {"keys": DecoderKeys(ahead=True), "mean": DecoderKeys(joined=False, ahead=True)})
    heads = adapter_for(built(family)).text_config.num_key_value_heads
    for early, late in zip(ahead, shown(family, 3, {"keys": DecoderKeys()}), strict=True):
        for got, mean, due in zip(early["keys"], early["mean"], late["keys"], strict=True):
            close(got, due, HIDDEN)
            close(mean, due.unflatten(1, (heads, -1)).mean(1), HIDDEN)


@pytest.mark.parametrize("layer", [2, 3])
@pytest.mark.parametrize("family", NEW_IMAGES)
def test_signals_behind_a_pruned_cache(family: str, layer: int) -> None:
    """A new image in the second turn: what is read equals what the eager layers then really do."""
    model, first, more = built(family, "eager"), inputs_of(family, [[0], [4]]), inputs_of(family, [[1], [5]], seed=50)
    needs: dict[str, Need] = {"ahead": LastQueryAttention(ahead=True), "text": TextQueryAttention(heads="all")}
    spy = Onlooker(layer, needs, images=2)
    with vlmprune.prune(model, Recipe((Stage(spy, 0.5),))):
        cache = cache_of(model(**first, use_cache=True))
        both = torch.cat([first["attention_mask"], more["attention_mask"]], dim=1)
        with watched(eager_of(family), layer) as ahead, watched(eager_of(family), layer - 1) as before:
            model(**{**more, "attention_mask": both}, **behind(cache))
    assert cache.layers[layer].keys.shape[2] < cache.layers[layer - 1].keys.shape[2] or family == "gemma3"
    for seen, (row, image, text) in zip(spy.seen[2:], columns(family, [[1], [5]]), strict=True):
        maps = ahead["maps"][row]
        start = maps.shape[-1] - maps.shape[-2]
        close(seen["ahead"], maps.mean(0)[-1, start + image])
        maps = before["maps"][row]
        start = maps.shape[-1] - maps.shape[-2]
        close(seen["text"], maps[:, text][..., start + image])


@torch.no_grad()
def test_looking_ahead_behind_a_cache_of_latents_is_refused() -> None:
    """Kimi's cache stores what keys are made from; what the layer before it did can still be read."""
    model, first, more = built("kimi_k25"), inputs_of("kimi_k25", [[0]]), inputs_of("kimi_k25", [[1]], seed=50)
    both = {**more, "attention_mask": torch.cat([first["attention_mask"], more["attention_mask"]], dim=1)}
    for need, reason in ((LastQueryAttention(ahead=True), "does not store the keys"), (LastQueryAttention(), "")):
        spy = Onlooker(2, {"row": need}, images=1)
        with vlmprune.prune(model, Recipe((Stage(spy, 0.5),))):
            cache = cache_of(model(**first, use_cache=True))
            if not reason:
                model(**both, **behind(cache))
                continue
            with pytest.raises(vlmprune.UserError, match=reason):
                model(**both, **behind(cache))
    assert len(spy.seen) == 2


@pytest.mark.parametrize("family", ["llava", "internvl", "llama4 with dense layers"])
def test_rotary_gain_is_a_sum_of_cosines_of_the_distance(family: str) -> None:
    inputs, width = inputs_of(family, RAGGED), 8
    theta = 10000.0 ** (-torch.arange(width // 2) * 2 / width)
    for seen, (row, image, text) in zip(shown(family, 2, {"gain": RotaryGain()}), columns(family), strict=True):
        at = inputs["attention_mask"][row].cumsum(0) - 1
        angles = (at[text][:, None] - at[image])[..., None] * theta
        close(seen["gain"], 2 * width**-0.5 * angles.cos().sum(-1))


def test_rotary_gain_of_a_layer_without_positions() -> None:
    for seen in shown("llama4", 2, {"gain": RotaryGain()}):
        assert bool((seen["gain"] == 8**0.5).all()) and seen["gain"].numel() > 0


@pytest.mark.parametrize("family", SIX)
def test_rotary_gain_equals_the_layers_own_rotation_of_ones(family: str) -> None:
    """The model's own function turns a query and a key of ones, with the ids that its rotary embedding was given."""
    model, layer = built(family, "eager"), 1
    attention = adapter_for(model).decoder_attention(layer)
    calls: dict[str, Any] = {}

    def note(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls["rotary"] = kwargs["position_embeddings"]

    handle = attention.register_forward_pre_hook(note, with_kwargs=True)
    model(**inputs_of(family, RAGGED))
    handle.remove()
    rotate: Any = sys.modules[type(attention).__module__].apply_rotary_pos_emb  # type: ignore[attr-defined]
    cos, sin = (turn.expand(len(RAGGED), -1, -1) for turn in calls["rotary"])
    ones = torch.ones(len(RAGGED), 1, cos.shape[1], attention.head_dim)
    query, key = rotate(ones, ones, cos, sin)
    for seen, (row, image, text) in zip(shown(family, 2, {"gain": RotaryGain()}), columns(family), strict=True):
        close(seen["gain"], attention.scaling * query[row, 0, text] @ key[row, 0, image].T)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_what_entered_is_known_whatever_was_dropped_or_merged_since(family: str) -> None:
    inputs, entered = inputs_of(family, RAGGED), {"entered": EnteredEmbeddings()}
    whole = [seen["entered"] for seen in shown(family, 1, entered)]
    early, late = InnerSpy(1, {}), InnerSpy(3, entered)
    with vlmprune.prune(built(family), Recipe((Stage(early, 0.5), Stage(late, 0.5)))):
        built(family)(**inputs)
    assert all(torch.equal(seen["entered"], tokens) for seen, tokens in zip(late.seen, whole, strict=True))
    late = InnerSpy(2, entered)
    stages = (*vlmprune.recipe("visionzip:9").stages, Stage(late, 0.5))
    with vlmprune.prune(built(family), Recipe(stages)):
        built(family)(**inputs)
    assert [len(seen["entered"]) for seen in late.seen] == [9, 9, 9]


GPT_OSS = {
    **TEXT, **SLIDING, "model_type": "gpt_oss", "head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2,
}  # fmt: skip


def test_rows_of_a_text_model_with_attention_sinks() -> None:
    """InternVL with gpt-oss: a logit of each head that belongs to no key takes its share of every row."""
    tower, text = {**TOWER, "image_size": 24}, {k: v for k, v in GPT_OSS.items() if k != "query_pre_attn_scalar"}
    model = builder("InternVL", tower, text, image_token_id=IMAGE, image_seq_length=9)("eager")
    inputs = prompt(FAMILIES["internvl"], [[0]])
    shown = model(**inputs, output_attentions=True).attentions[1][0, :, -1]
    assert float(shown.sum(-1).max()) < 0.999
    spy = InnerSpy(2, {"last": LastQueryAttention()})
    with vlmprune.prune(model, Recipe((Stage(spy, 0.5),))):
        model(**inputs)
    slots = (inputs["input_ids"][0] == IMAGE).nonzero().squeeze(1)
    assert float((spy.seen[0]["last"] - shown.mean(0)[slots]).abs().max()) < 1e-6


@pytest.mark.parametrize("name", ["qwen3_vl video", "qwen3_vl mixed", "smolvlm"])
def test_text_between_frames_never_counts_as_behind_the_image(name: str) -> None:
    """Also where the first act has left none of the frames that follow it."""
    first, second = (InnerSpy(layer, {"text": TextQueryAttention(heads="all")}) for layer in (1, 2))
    family = FAMILIES[name]
    model = family.build("sdpa")
    with vlmprune.prune(model, Recipe((Stage(first, 2), Stage(second, 1)))), torch.no_grad():
        model(**prompt(family, [[0]]))
    (before,), (after,) = ([one["text"].shape[-2] for one in spy.seen] for spy in (first, second))
    assert before == after > 0
