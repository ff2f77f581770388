"""Attention backends: what prunes right under sdpa prunes the same under flash attention and flex attention.

Flash attention has no kernel for CPUs. Its two functions are written out here in plain torch, to the contract of the
flash-attn package, and put under transformers' own code (unpadding by the 2-D mask, packed sequences read off position
ids, `cu_seq_lens` of vision towers), so that all of that runs. Flex attention runs uncompiled: on the CPU, torch's
compiler does not get through its kernel.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from harness import TOLERANCE, built, generate, inputs_of, largest
from harness_backends import FLASH, FLEX, flash, flex
from harness_spies import Onlooker
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask
from versions import behind, cache_of

import vlmprune
from vlmprune.core.method import DecoderMethod
from vlmprune.core.needs import Need
from vlmprune.core.recipe import Recipe, Stage
from vlmprune.core.report import Kept
from vlmprune.core.signals import LastQueryAttention, TextQueryAttention
from vlmprune.core.view import ImageView, ModelInfo
from vlmprune.models import adapter_for

__all__ = ["flash", "flex"]
SPECS = {
    "before": "divprune:0.5",
    "by the encoder": "hiprune:0.4",
    "merging": "visionzip:0.4",
    "inside": "fastv@2:0.3",
    "by keys": "dart@2:0.4",
    "both": "divprune:0.7 > random@1:0.6 > fastv@2:0.5",
}
SAMPLES: dict[str, list[list[int | None]]] = {"ragged": [[0, 1], [2]], "one": [[0, 1]]}
UNDER_FLASH = (
    "llava", "llava_next", "llava_onevision video", "qwen2_5_vl", "qwen3_vl video", "qwen3_5", "internvl", "smolvlm",
    "gemma3", "paligemma",
)  # fmt: skip
UNDER_FLEX = ("llava", "llava_next", "qwen3_vl_moe", "internvl", "smolvlm", "gemma3", "paligemma2")

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without")
specs = pytest.mark.parametrize("name", SPECS)
samples = pytest.mark.parametrize("batch", SAMPLES)


# ---------------------------------------------------------------------- flash attention, emulated


@cache
def widened(attention: str) -> Any:
    """Gemma3 without the window that flash attention counts by other tokens than sdpa."""
    model = built.__wrapped__("gemma3", attention)
    model.config.text_config.sliding_window = 512
    for layer in model.model.language_model.layers:
        if layer.self_attn.is_sliding:
            layer.self_attn.sliding_window = 512
    return model


def pair(family: str, batch: str, attention: str) -> tuple[Any, Any, dict[str, Any], dict[str, Any]]:
    """A model with that attention, its sdpa twin, and inputs of each from which both compute the same."""
    inputs = inputs_of(family, SAMPLES[batch])
    if family == "gemma3" and attention == FLASH:  # it has no masks in which an image sees itself in both directions
        causal = {name: value for name, value in inputs.items() if name != "token_type_ids"}
        return widened(FLASH), widened("sdpa"), inputs, causal
    model, plain = built(family, attention), built(family)
    if family == "smolvlm":  # what padded patches compute differs with the kernel, and their slots are duplicates
        inputs = vlmprune.encode_images(model, inputs, SPECS.values()).inputs()
    return model, plain, inputs, inputs


def same(kept: Kept, other: Kept) -> bool:
    return all(torch.equal(a, b) for row, rest in zip(kept, other, strict=True) for a, b in zip(row, rest, strict=True))


@pytest.mark.usefixtures("flash")
@pytest.mark.parametrize("family", UNDER_FLASH)
@samples
def test_flash_keeping_everything_is_bit_identical(family: str, batch: str) -> None:
    model, _, inputs, _ = pair(family, batch, FLASH)
    expected = generate(model, inputs)
    for name in ("divprune", "visionzip", "fastv@2"):
        with vlmprune.prune(model, f"{name}:1.0"):
            ids, logits = generate(model, inputs)
        assert torch.equal(ids, expected[0]) and torch.equal(logits, expected[1])


@pytest.mark.usefixtures("flash")
@pytest.mark.parametrize("family", UNDER_FLASH)
@samples
@specs
def test_flash_equals_sdpa(family: str, batch: str, name: str) -> None:
    """Same tokens kept, same logits; in a batch of one, where position ids have gaps, and in a padded one."""
    fast, plain, inputs, plain_inputs = pair(family, batch, FLASH)
    results = []
    for model, given in ((fast, inputs), (plain, plain_inputs)):
        with vlmprune.prune(model, SPECS[name]) as session:
            results.append((*generate(model, given), session.last.kept))
    assert same(results[0][2], results[1][2])
    assert torch.equal(results[0][0], results[1][0])
    assert largest(results[0][1], results[1][1]) < TOLERANCE


@pytest.mark.usefixtures("flash")
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "qwen3_vl", "internvl"])
@pytest.mark.parametrize("text", ["pyramiddrop:0.5", "sparsevlm:0.333", "adaptinfer:0.3", "mustdrop:0.4", "vtw:0.5"])
def test_flash_equals_sdpa_where_a_method_acts_several_times(family: str, text: str) -> None:
    """Looking ahead, rows of all text, merged tokens inside, caches that are cut, and no image at all."""
    results = []
    for attention in ("sdpa", FLASH):
        with vlmprune.prune(built(family, attention), text) as session:
            results.append((*generate(built(family, attention), inputs_of(family, SAMPLES["ragged"])), session.last))
    assert all(same(a, b) for (_, a), (_, b) in zip(results[0][2].stages, results[1][2].stages, strict=True))
    assert results[0][2].trimmed == results[1][2].trimmed
    assert torch.equal(results[0][0], results[1][0]) and largest(results[0][1], results[1][1]) < TOLERANCE


@pytest.mark.usefixtures("flash")
@pytest.mark.parametrize("family", UNDER_FLASH)
@samples
@pytest.mark.parametrize("name", ["before", "inside", "both"])
def test_flash_with_a_static_cache(family: str, batch: str, name: str) -> None:
    """The mask alone tells flash attention where a static cache ends, even when nothing is padded."""
    model, _, inputs, _ = pair(family, batch, FLASH)
    with vlmprune.prune(model, SPECS[name]):
        tokens, logits = generate(model, inputs)
        static = generate(model, inputs, cache_implementation="static", disable_compile=True)
    assert torch.equal(tokens, static[0]) and largest(logits, static[1]) < TOLERANCE


@pytest.mark.usefixtures("flash")
@pytest.mark.parametrize("family", ["llava", "qwen3_vl", "gemma3"])
@pytest.mark.parametrize("name", ["before", "inside", "both"])
def test_flash_without_a_cache(family: str, name: str) -> None:
    model, _, inputs, _ = pair(family, "one", FLASH)
    with vlmprune.prune(model, SPECS[name], positions="original"):
        _, logits = generate(model, inputs)
        again = model(**inputs, use_cache=False).logits
        bare = model(**{key: value for key, value in inputs.items() if key != "attention_mask"}, use_cache=False).logits
    assert largest(again[:, -1], logits[:, 0]) < TOLERANCE
    if family != "qwen3_vl":  # its own M-RoPE ids need the mask
        assert largest(bare[:, -1], logits[:, 0]) < TOLERANCE


@pytest.mark.usefixtures("flash")
@pytest.mark.parametrize("family", ["llava", "internvl"])
@pytest.mark.parametrize("name", ["before", "both"])
def test_flash_with_a_new_image_in_the_second_turn(family: str, name: str) -> None:
    """Several queries with gaps in their ids behind a cache: read as packed sequences, they would lose the cache."""
    results = []
    first, more = inputs_of(family, [[0]]), inputs_of(family, [[1]], seed=50)
    for attention in ("sdpa", FLASH):
        model = built(family, attention)
        with vlmprune.prune(model, SPECS[name], positions="original"):
            out = model.generate(**first, max_new_tokens=3, do_sample=False, return_dict_in_generate=True)
            ids = torch.cat([out.sequences, more["input_ids"]], dim=1)
            turn = {**more, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
            results.append((ids, *generate(model, turn, **behind(cache_of(out)))))
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])
    assert largest(results[0][2], results[1][2]) < TOLERANCE


@pytest.mark.usefixtures("flash")
def test_flash_prompt_lookup_and_beams() -> None:
    inputs = inputs_of("qwen2_5_vl", [[0, 1]])
    results: dict[str, list[Tensor]] = {}
    for attention in ("sdpa", FLASH):
        model = built("qwen2_5_vl", attention)
        with vlmprune.prune(model, SPECS["both"]):
            greedy = model.generate(**inputs, max_new_tokens=8, do_sample=False)
            lookup = model.generate(**inputs, max_new_tokens=8, do_sample=False, prompt_lookup_num_tokens=3)
            beams = model.generate(**inputs, max_new_tokens=5, do_sample=False, num_beams=3)
        assert torch.equal(greedy, lookup)
        results[attention] = [greedy, beams]
    assert all(torch.equal(a, b) for a, b in zip(*results.values(), strict=True))


@torch.no_grad()
@pytest.mark.usefixtures("flash")
def test_flash_measures_windows_by_stored_tokens() -> None:
    """As runtime/masks.py says: where sdpa's windows count the places that tokens had, flash attention's cannot.

    The reference is a shorter prompt put together by hand for sdpa, which counts it as it is stored.
    """
    inputs = inputs_of("gemma3", [[0, 1]])
    fast, plain = built("gemma3", FLASH), built("gemma3")
    with vlmprune.prune(fast, "random:0.5", positions="original") as session:
        logits = fast(**inputs).logits
    columns = session.last.columns[0]
    features = plain.get_image_features(inputs["pixel_values"]).pooler_output
    embeds = plain.get_input_embeddings()(inputs["input_ids"])
    embeds[inputs["input_ids"] == adapter_for(plain).placeholder_ids["image"]] = features.flatten(0, 1)
    short = plain.model.language_model(
        inputs_embeds=embeds[:, columns], position_ids=columns[None], attention_mask=torch.ones(1, len(columns))
    )
    assert plain.config.text_config.sliding_window < len(columns)
    assert largest(logits, plain.lm_head(short.last_hidden_state)) < TOLERANCE


@dataclass
class Probe(DecoderMethod):
    """Keeps the first tokens and what it was shown."""

    name = "probe"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.seen: list[dict[str, Any]] = []

    def needs(self, info: ModelInfo) -> dict[str, Need]:
        return {"last": LastQueryAttention(), "text": TextQueryAttention()}

    def select(self, view: ImageView) -> Tensor:
        self.seen.append(dict(view.signals))
        return torch.arange(view.keep)


def rows_read(model: Any, inputs: dict[str, Any], layer: int) -> list[dict[str, Tensor]]:
    probe = Probe(layer=layer)
    with torch.no_grad(), vlmprune.prune(model, probe, keep=0.5):
        model(**inputs)
    return probe.seen


def assert_same_rows(one: list[dict[str, Tensor]], other: list[dict[str, Tensor]]) -> None:
    assert len(one) == len(other) > 0
    for a, b in zip(one, other, strict=True):
        assert largest(a["last"], b["last"]) < 1e-5
        assert largest(a["text"], b["text"]) < 1e-5


@pytest.mark.usefixtures("flash")
@pytest.mark.parametrize("family", UNDER_FLASH)
@samples
def test_flash_scores_are_sdpas(family: str, batch: str) -> None:
    """PaliGemma's text sees the whole prefix, later text too: not told by a mask when nothing is padded."""
    fast, plain, inputs, plain_inputs = pair(family, batch, FLASH)
    layer = 2  # reads layer 1, a full attention layer everywhere
    assert_same_rows(rows_read(fast, inputs, layer), rows_read(plain, plain_inputs, layer))


@torch.no_grad()
@pytest.mark.usefixtures("flash")
@pytest.mark.parametrize("layer", [1, 2])  # full after a sliding one, and the other way round
def test_flash_looks_ahead_through_the_window_of_the_layer_ahead(layer: int) -> None:
    model, rows = built("gemma3", FLASH), []
    for at, need in ((layer, LastQueryAttention(ahead=True)), (layer + 1, LastQueryAttention())):
        spy = Onlooker(at, {"row": need}, images=0)  # drops nothing
        with vlmprune.prune(model, Recipe((Stage(spy, 0.5),))):
            model(**inputs_of("gemma3", SAMPLES["ragged"]))
        rows.append([seen["row"] for seen in spy.seen])
    assert all(largest(a, b) < 1e-5 for a, b in zip(*rows, strict=True))
    assert (layer == 2) == bool((rows[0][0] == 0).any())  # the window hides some of the first image


@pytest.mark.usefixtures("flash")
def test_flash_encoder_scores_leave_padded_patches_out() -> None:
    kept = []
    for attention in ("sdpa", FLASH):
        with vlmprune.prune(built("smolvlm", attention), "hiprune:0.5") as session:
            built("smolvlm", attention)(**inputs_of("smolvlm", [[2], [5]]))
        kept.append(session.last.kept)
    assert same(*kept)


# ---------------------------------------------------------------------- flex attention


@pytest.mark.usefixtures("flex")
@pytest.mark.parametrize("family", UNDER_FLEX)
@samples
def test_flex_keeping_everything_is_bit_identical(family: str, batch: str) -> None:
    model, inputs = built(family, FLEX), inputs_of(family, SAMPLES[batch])
    expected = generate(model, inputs)
    for name in ("divprune", "fastv@2"):
        with vlmprune.prune(model, f"{name}:1.0"):
            ids, logits = generate(model, inputs)
        assert torch.equal(ids, expected[0]) and torch.equal(logits, expected[1])


@pytest.mark.usefixtures("flex")
@pytest.mark.parametrize("family", UNDER_FLEX)
@samples
@specs
def test_flex_equals_sdpa(family: str, batch: str, name: str) -> None:
    """Two-way images and sliding windows included, as block masks can say both."""
    *models, inputs, _ = pair(family, batch, FLEX)
    results = []
    for model in models:
        with vlmprune.prune(model, SPECS[name]) as session:
            results.append((*generate(model, inputs), session.last.kept))
    assert same(results[0][2], results[1][2])
    assert torch.equal(results[0][0], results[1][0])
    assert largest(results[0][1], results[1][1]) < TOLERANCE


@pytest.mark.usefixtures("flex")
@pytest.mark.parametrize("layer", [2, 3])
@pytest.mark.parametrize("family", UNDER_FLEX)
def test_flex_scores_are_sdpas(family: str, layer: int) -> None:
    """At a sliding layer too (Gemma3's layer 2), whose window is in the block mask."""
    inputs = inputs_of(family, SAMPLES["ragged"])
    found = [rows_read(built(family, attention), inputs, layer) for attention in (FLEX, "sdpa")]
    assert_same_rows(*found)


@torch.no_grad()
@pytest.mark.usefixtures("flex")
def test_flex_masks_are_block_masks_of_the_shortened_length() -> None:
    model, inputs, masks = built("llava", FLEX), inputs_of("llava", SAMPLES["ragged"]), []
    with vlmprune.prune(model, SPECS["both"]) as session:
        handles = [
            layer.register_forward_pre_hook(lambda *call: masks.append(call[-1]["attention_mask"]), with_kwargs=True)
            for layer in model.model.language_model.layers
        ]
        model(**inputs)
    for handle in handles:
        handle.remove()
    assert all(isinstance(mask, BlockMask) for mask in masks)
    sizes = [mask.seq_lengths for mask in masks]
    assert sizes[0] > sizes[1] > sizes[2] == sizes[3] == (session.last.columns.shape[1],) * 2
    assert sizes[0][0] < inputs["input_ids"].shape[1]


@pytest.mark.usefixtures("flex")
def test_flex_with_a_second_turn_of_text() -> None:
    """The model hands its text model a block mask, from which padding cannot be read."""
    results, inputs = [], inputs_of("gemma3", SAMPLES["ragged"])
    for attention in (FLEX, "sdpa"):
        model = built("gemma3", attention)
        with vlmprune.prune(model, SPECS["both"]):
            first = model.generate(**inputs, max_new_tokens=3, do_sample=False, return_dict_in_generate=True)
            ids = torch.cat([first.sequences, torch.tensor([[21, 22, 23], [31, 32, 33]])], dim=1)
            extra = ids.shape[1] - inputs["input_ids"].shape[1]
            mask = torch.nn.functional.pad(inputs["attention_mask"], (0, extra), value=1)
            turn = {"input_ids": ids, "attention_mask": mask}
            results.append(generate(model, turn, **behind(cache_of(first))))
    assert torch.equal(results[0][0], results[1][0]) and largest(results[0][1], results[1][1]) < TOLERANCE
