"""Images pruned apart from their prompt: what `vlmprune.prune` keeps of them, and as many as was said before."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any, ClassVar

import pytest
import torch
from harness import built, inputs_of
from harness_text import QUESTION, prompt_tokenizer, tower

import vlmprune
from vlmprune.core.method import Method
from vlmprune.core.needs import Need
from vlmprune.core.recipe import Recipe, Stage
from vlmprune.core.signals import PromptText
from vlmprune.core.view import ModelInfo
from vlmprune.models import adapter_for
from vlmprune.runtime.apart import Apart, grouped
from vlmprune.runtime.prompt_text import Vocabulary
from vlmprune.runtime.taps import AttentionCall

FAMILIES = ("llava", "llava_next", "qwen2_5_vl", "qwen3_vl", "internvl")
TILED = {"internvl": [3, 1]}  # rows of pixels of the two images, where an image has several
SEEDS = [0, 0]


def call_of(family: str) -> tuple[dict[str, torch.Tensor], dict[str, Any], list[int]]:
    """The inputs of a prompt with two images, those that the encoder takes, and the rows of pixels of each."""
    inputs = inputs_of(family, [[0, 1]])
    adapter = adapter_for(built(family))
    names = [name for name in inputs if name.startswith(("pixel", "image_"))]
    call = {name: inputs[name] for name in names}
    pieces = len(adapter.slots("image", call))
    parts = [1, 1] if pieces == 2 else None
    if parts is None:
        columns = [torch.arange(len(place.cells)) for place in adapter.slots("image", call)]
        starts = torch.cumsum(torch.tensor([0, *map(len, columns)]), 0)
        where = (inputs["input_ids"][0] == adapter.placeholder_ids["image"]).nonzero().squeeze(1)
        parts = adapter.images(inputs["input_ids"][0], [where[a:b] for a, b in pairwise(starts)])
    return inputs, call, parts


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("spec", ["divprune:0.4", "vispruner:0.3", "divprune:0.8 > uniform:0.5", "hiprune:4"])
@torch.no_grad()
def test_keeps_what_a_session_keeps(family: str, spec: str) -> None:
    model = built(family)
    inputs, call, parts = call_of(family)
    apart = Apart(model, vlmprune.recipe(spec))
    counts, kept = apart.counts("image", call, parts), apart.encode("image", call, parts, SEEDS)
    with vlmprune.prune(model, spec) as session:
        model(**inputs)
    [of_session] = session.last.kept
    assert len(kept) == len(of_session) == 2
    for count, own, theirs in zip(counts, kept, of_session, strict=True):
        assert torch.equal(own.slots, theirs)
        assert count.kept == len(own.features) < count.whole


@pytest.mark.parametrize(
    "spec", ["visionzip:0.4", "tome:0.4", "prumerge+:0.4", "downsample:0.4", "visionzip:0.8 > pool:0.5"]
)
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
@torch.no_grad()
def test_makes_as_many_tokens_as_were_counted(family: str, spec: str) -> None:
    _, call, parts = call_of(family)
    apart = Apart(built(family), vlmprune.recipe(spec))
    counts, kept = apart.counts("image", call, parts), apart.encode("image", call, parts, SEEDS)
    assert [count.kept for count in counts] == [len(own.features) for own in kept]
    assert all(count.kept < count.whole for count in counts)


@torch.no_grad()
def test_merged_tokens_are_those_of_a_session() -> None:
    """The LLM gets the same rows, in the same order."""
    model = built("llava")
    inputs, call, parts = call_of("llava")
    seen: list[torch.Tensor] = []
    kept = Apart(model, vlmprune.recipe("visionzip:0.4")).encode("image", call, parts, SEEDS)
    with vlmprune.prune(model, "visionzip:0.4"):
        first = model.model.language_model.layers[0]
        handle = first.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
        model(**inputs)
        handle.remove()
    [rows] = seen[0]
    for own in kept:
        starts = (rows == own.features[0]).all(1).nonzero().flatten().tolist()
        assert any(torch.equal(rows[start : start + len(own.features)], own.features) for start in starts)


@pytest.mark.parametrize("spec", ["divprune:0.4", "visionzip:0.4", "prunesid:0.4", "downsample:0.4"])
@torch.no_grad()
def test_deepstack_goes_with_the_slot_that_lends_the_position(spec: str) -> None:
    model = built("qwen3_vl")
    _, call, parts = call_of("qwen3_vl")
    recipe = vlmprune.recipe(spec)
    kept = Apart(model, recipe).encode("image", call, parts, SEEDS)
    if spec.startswith("downsample"):  # encodes smaller images
        assert all(len(own.levels) == 3 and own.levels[0].abs().sum() > 0 for own in kept)
        return
    whole = model.model.get_image_features(**call, return_dict=True).deepstack_features
    for image, own in enumerate(kept):
        assert len(own.levels) == len(whole) == 3
        for level, rows in zip(own.levels, whole, strict=True):
            torch.testing.assert_close(level, rows[image][own.slots.clamp(min=0)])


REFUSED = {
    "fastv@2:0.5": "fastv prunes inside the LLM",
    "divprune:0.5 > fastv@2:0.5": "fastv prunes inside the LLM",
    "prumerge(adaptive=True)": "prumerge decides from the image how many tokens it keeps",
    "divprune:0.5/latest+0.1/older": "is for a single method in this engine",
    "divprune:[0.5, 0.1]": "prunes each image by itself",
}


@pytest.mark.parametrize("spec", REFUSED)
def test_refuses_what_an_engine_cannot_do(spec: str) -> None:
    with pytest.raises(vlmprune.UserError, match=REFUSED[spec]):
        Apart(built("llava"), vlmprune.recipe(spec))


class Prompted(Method):
    """Reads all of a prompt."""

    name: ClassVar[str] = "prompted"
    stage: ClassVar[str] = "vision"

    def needs(self, info: ModelInfo) -> dict[str, Need]:
        return {"text": PromptText()}


def test_refuses_a_method_that_reads_all_of_a_prompt() -> None:
    with pytest.raises(vlmprune.UserError, match="prompted reads the words of the prompt as they stand"):
        Apart(built("llava"), Recipe((Stage(Prompted(), 0.5),)))


READERS = ("cdpruner", "dcp", "gridprune", "hiprune++", "mmtok", "recoverable", "trim")
QUESTIONS = (QUESTION, "dark+ blue++ right", "left+", "many+++", "is++", "red")


@pytest.mark.parametrize(
    ("name", "family", "by_tower"),
    [
        *((name, "llava", by_tower) for name in READERS for by_tower in (False, True)),
        *((name, "qwen2_5_vl", False) for name in ("cdpruner", "hiprune++", "mmtok", "trim")),
        ("trim", "llava_next", True),
    ],
)
@torch.no_grad()
def test_compares_with_a_question_as_a_session_does(name: str, family: str, by_tower: bool) -> None:
    model, spec = built(family), f"{name}:0.3"
    inputs, call, parts = call_of(family)
    apart, words = Apart(model, vlmprune.recipe(spec)), model.get_input_embeddings()
    assert apart.reads and apart.needs_tower is (name != "mmtok")
    apart.text_tower = tower({"llava": 24, "llava_next": 16}[family]) if by_tower else None
    apart.vocabulary = Vocabulary(prompt_tokenizer(), words, len(words.weight))
    found = [apart.encode("image", call, parts, SEEDS, question=question) for question in QUESTIONS]
    for question, kept in zip(QUESTIONS, found, strict=True):
        with vlmprune.prune(model, spec, text_tower=apart.text_tower, tokenizer=prompt_tokenizer()) as session:
            session.question = question
            model(**inputs)
        [of_session] = session.last.kept
        assert all(torch.equal(own.slots.sort().values, theirs) for own, theirs in zip(kept, of_session, strict=True))
    assert len({tuple(own.slots.tolist()) for kept in found for own in kept}) > len(parts)
    # what vLLM is profiled with, and words of which a method reads none
    assert all(len(apart.encode("image", call, parts, SEEDS, question=one)) == len(parts) for one in ("?", "the of"))


@torch.no_grad()
def test_a_question_must_be_given_and_read() -> None:
    _, call, parts = call_of("llava")
    apart = Apart(built("llava"), vlmprune.recipe("trim:0.5"))
    with pytest.raises(vlmprune.UserError, match=r"trim:0\.5 compares images with a question, and there is none"):
        apart.encode("image", call, parts, SEEDS)
    with pytest.raises(vlmprune.UserError, match="give prune tokenizer="):
        apart.encode("image", call, parts, SEEDS, question=QUESTION)
    assert not Apart(built("llava"), vlmprune.recipe("divprune:0.5")).reads


@pytest.mark.parametrize("family", ["llava_next", "internvl"])
def test_refuses_to_shrink_pictures_of_one_size(family: str) -> None:
    with pytest.raises(vlmprune.UserError, match=f"downsample shrinks pictures, and those of {family} have one size"):
        Apart(built(family), vlmprune.recipe("downsample:0.5"))


def test_draws_by_the_seed_of_the_image() -> None:
    _, call, parts = call_of("llava")
    apart = Apart(built("llava"), vlmprune.recipe("random:0.4"))
    assert apart.draws and not Apart(built("llava"), vlmprune.recipe("divprune:0.4")).draws
    with torch.no_grad():
        first, again, other = (apart.encode("image", call, parts, [seed, 5])[0].slots for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_pieces_that_fit_no_image_are_an_error() -> None:
    assert grouped("abc", [2, 1]) == [["a", "b"], ["c"]]
    with pytest.raises(RuntimeError, match="3 pieces cannot be told apart"):
        grouped("abc", [2, 2])


@torch.no_grad()
def test_an_engine_that_shares_heads_out_hands_in_whole_calls() -> None:
    """What a method reads is what the engine made of each call of the layers that it names."""
    model, (_, call, parts) = built("llava"), call_of("llava")
    spec = vlmprune.recipe("vispruner:0.3")
    plain, mirrored = Apart(model, spec), Apart(model, spec)
    attentions, seen = list(adapter_for(model).encoder_attentions()), list[int]()

    def mirror(module: torch.nn.Module, own: AttentionCall) -> AttentionCall:
        seen.append(attentions.index(module))
        return replace(own, query=-own.query)

    mirrored.whole = mirror
    kept, others = (apart.encode("image", call, parts, SEEDS) for apart in (plain, mirrored))
    assert seen and {*seen} <= {*range(len(attentions))}
    assert any(not torch.equal(a.slots, b.slots) for a, b in zip(kept, others, strict=True))
    assert plain.seconds > 0
