"""Opening, closing, errors: nothing is left behind, and a user's mistake gets one sentence."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from harness import RAGGED, built, cases, families, generate, inputs_of
from harness_spies import fingerprint, same
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM
from transformers.cache_utils import DynamicCache
from versions import behind, cache_of

import vlmprune
from vlmprune import UserError
from vlmprune.core.method import DecoderMethod, Scorer
from vlmprune.core.needs import Need
from vlmprune.core.recipe import Recipe, Stage
from vlmprune.core.signals import Features
from vlmprune.core.view import ImageView, ModelInfo
from vlmprune.models import adapter_for
from vlmprune.testing import FAMILIES


@cases({"divprune": "hiprune:0.3 > fastv@2:0.5", "downsample": "downsample:0.5", "visionzip": "visionzip:0.3"})
def test_the_model_is_what_it_was(family: str, name: str) -> None:
    spec = {"divprune": "hiprune:0.3 > fastv@2:0.5"}.get(name, f"{name}:0.5")
    model, inputs = built(family), inputs_of(family, RAGGED)
    expected = generate(model, inputs)
    generate(model, inputs)  # transformers installs its own output-capture hooks at first use
    before = fingerprint(model)
    with vlmprune.prune(model, spec):
        generate(model, inputs)
    assert same(before, fingerprint(model))
    again = generate(model, inputs)
    assert torch.equal(expected[0], again[0]) and torch.equal(expected[1], again[1])


@families
def test_undone_after_an_exception_in_the_middle_of_a_layer(family: str) -> None:
    model, inputs = built(family), inputs_of(family, RAGGED)
    expected = generate(model, inputs)
    before = fingerprint(model)

    def explode(*_: Any) -> None:
        raise KeyboardInterrupt

    first = "divprune" if "encoder" in FAMILIES[family].lacks else "hiprune"
    with pytest.raises(KeyboardInterrupt), vlmprune.prune(model, f"{first}:0.3 > fastv@2:0.5"):
        handle = adapter_for(model).decoder_layers[1].self_attn.register_forward_hook(explode)
        try:
            generate(model, inputs)
        finally:
            handle.remove()
    assert same(before, fingerprint(model))
    assert torch.equal(expected[1], generate(model, inputs)[1])


@families
def test_attributes_of_the_models_own_are_put_back(family: str) -> None:
    model, inputs = built(family), inputs_of(family, RAGGED)
    inner = adapter_for(model).inner
    places = [(model, "generate"), (model, "prepare_inputs_for_generation"), (inner, "get_image_features")]
    own = [functools.wraps(getattr(owner, name))(functools.partial(getattr(owner, name))) for owner, name in places]
    try:
        for (owner, name), value in zip(places, own, strict=True):
            owner.__dict__[name] = value
        with vlmprune.prune(model, "divprune:0.5") as session:
            generate(model, inputs)
        assert session.last.tokens[0][1] < session.last.tokens[0][0]
        assert all(owner.__dict__[name] is value for (owner, name), value in zip(places, own, strict=True))
    finally:
        for owner, name in places:
            owner.__dict__.pop(name, None)


@families
def test_a_session_goes_on_after_an_exception(family: str) -> None:
    model, inputs = built(family), inputs_of(family, RAGGED)
    with vlmprune.prune(model, "fastv:0.3") as session:
        expected = generate(model, inputs)
        with pytest.raises(UserError):
            model(**inputs, labels=inputs["input_ids"])
        with pytest.raises(ValueError, match=r"tokens|features"):
            model(
                **{
                    **inputs,
                    "input_ids": inputs["input_ids"][:, :-30],
                    "attention_mask": inputs["attention_mask"][:, :-30],
                }
            )
        assert torch.equal(expected[1], generate(model, inputs)[1])
        assert session.last.tokens[0][1] < session.last.tokens[0][0]


def test_text_only_prompts_pass_untouched() -> None:
    model = built("llava")
    inputs = {"input_ids": torch.tensor([[1, 5, 6, 7, 8]]), "attention_mask": torch.ones(1, 5).long()}
    expected = generate(model, inputs)
    with vlmprune.prune(model, "divprune:0.3 > fastv:0.3"):
        assert torch.equal(expected[1], generate(model, inputs)[1])


def test_labels_are_refused() -> None:
    model, inputs = built("llava"), inputs_of("llava", RAGGED)
    with vlmprune.prune(model, "divprune:0.3"), pytest.raises(UserError, match="labels"):
        model(**inputs, labels=inputs["input_ids"])
    with vlmprune.prune(model, "divprune:0.3"):  # where no loss is asked for, there is nothing to refuse
        expected = model(**inputs).logits
        assert torch.equal(model(**inputs, labels=torch.full_like(inputs["input_ids"], -100)).logits, expected)


@torch.no_grad()
@families
def test_a_prompt_of_embeddings(family: str) -> None:
    """The same images, tiles that belong together as one, as where ids are given. Qwen needs ids for its positions."""
    model, inputs = built(family), dict(inputs_of(family, RAGGED))
    embeds = model.get_input_embeddings()(inputs["input_ids"])
    if getattr(model.config.get_text_config(), "hidden_size_per_layer_input", 0):  # transformers' own, unpruned, too
        del inputs["input_ids"]
        with pytest.raises(RuntimeError, match="do not exactly match the embedding weights"):
            model(**inputs, inputs_embeds=embeds)
        return
    ids = adapter_for(model).placeholder_ids
    if "pixel_values_videos" in inputs and ids["video"] != model.config.video_token_id:  # GLM; unpruned, too
        del inputs["input_ids"]
        with pytest.raises(ValueError, match="Video features and video tokens do not match"):
            model(**inputs, inputs_embeds=embeds)
        return
    if family.startswith("llama4"):  # unpruned, too
        del inputs["input_ids"]
        with pytest.raises(ValueError, match="cannot specify both pixel_values and inputs_embeds"):
            model(**inputs, inputs_embeds=embeds)
        return
    with vlmprune.prune(model, "divprune:0.5 > fastv@2:0.5") as session:
        expected, kept = model(**inputs).logits, session.last.kept
        del inputs["input_ids"]
        logits = model(**inputs, inputs_embeds=embeds).logits
    mrope = hasattr(adapter_for(model).inner, "get_rope_index")
    assert mrope or torch.equal(logits, expected)
    assert [[len(image) for image in row] for row in kept] == [[len(i) for i in row] for row in session.last.kept]


class Wrapper(torch.nn.Module):
    """What PEFT puts around a model: attributes pass through, and a call goes to `forward`, past the model's hooks."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.inside = model

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.inside, name)

    @property
    def model(self) -> torch.nn.Module:
        return self.inside

    def get_base_model(self) -> torch.nn.Module:
        return self.inside

    def forward(self, **kwargs: Any) -> Any:
        return self.inside.forward(**kwargs)


@torch.no_grad()
@pytest.mark.parametrize("wrap", [Wrapper, torch.compile, lambda model: torch.compile(Wrapper(model))])
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_a_model_inside_wrappers(family: str, wrap: Callable[[Any], Any]) -> None:
    model, inputs = built(family), inputs_of(family, RAGGED)
    wrapped = wrap(model)
    generate(wrapped, inputs)  # what the wrapper itself leaves on the model
    before = fingerprint(model)
    with vlmprune.prune(model, "divprune:0.5 > fastv@2:0.5") as session:
        expected, tokens = generate(model, inputs), session.last.tokens
        scored = model(**inputs, logits_to_keep=3).logits
    with vlmprune.prune(wrapped, "divprune:0.5 > fastv@2:0.5") as session:
        assert torch.equal(generate(wrapped, inputs)[1], expected[1]) and session.last.tokens == tokens
        with pytest.raises(UserError, match="pruned already"), vlmprune.prune(model, "divprune:0.5"):
            pass
        if isinstance(wrapped, Wrapper):
            assert torch.equal(wrapped(**inputs, logits_to_keep=3).logits, scored)
            with pytest.raises(UserError, match="labels"):
                wrapped(**inputs, labels=inputs["input_ids"])
    assert same(before, fingerprint(model))


@torch.no_grad()
def test_an_adopted_cache_outside_its_context() -> None:
    model, inputs = built("llava"), inputs_of("llava", RAGGED)
    with vlmprune.prune(model, "divprune:0.3"):
        out = model(**inputs, use_cache=True)
        cache = copy.deepcopy(cache_of(out))
        expected = model(input_ids=torch.tensor([[5], [6]]), **behind(cache_of(out))).logits
    with pytest.raises(UserError, match="inside such a context"):
        model(input_ids=torch.tensor([[5], [6]]), **behind(cache))
    with vlmprune.prune(model, "fastv:0.5"):  # any context on this model will do
        assert isinstance(cache, DynamicCache)
        again = model(input_ids=torch.tensor([[5], [6]]), **behind(copy.deepcopy(cache))).logits
    assert torch.equal(expected, again)
    other = copy.deepcopy(model)
    with vlmprune.prune(other, "divprune:0.3"), pytest.raises(UserError, match="inside such a context"):
        model(input_ids=torch.tensor([[5], [6]]), **behind(cache))
    cache.reset()
    assert type(cache) is DynamicCache


SMALL = {"vocab_size": 32, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}


@pytest.mark.parametrize(
    ("model", "found", "step"),
    [
        (LlamaForCausalLM(LlamaConfig(**SMALL)), "a LlamaForCausalLM (model_type 'llama'): looked for", "adding-a-fam"),
        (BertModel(BertConfig(**SMALL)), "a BertModel (model_type 'bert'): looked for language_model", "adding-a-fam"),
        (torch.nn.Linear(2, 2), "a Linear, which is not a vision-language model", "AutoModelForImageTextToText"),
        (None, "a NoneType, which is not a vision-language model", "AutoModelForImageTextToText"),
        ("llava-hf/llava-1.5-7b-hf", "not its name 'llava-hf/llava-1.5-7b-hf'", "AutoModelForImageTextToText"),
    ],
    ids=["llama", "bert", "linear", "none", "name"],
)
def test_unsupported_models(model: Any, found: str, step: str) -> None:
    """One sentence names what was handed over and the next step, and no list of families."""
    with pytest.raises(UserError) as caught:
        vlmprune.prune(model, "divprune", keep=0.3)
    sentence = str(caught.value)
    assert found in sentence and step in sentence and "llava, llava_next" not in sentence and "\n" not in sentence


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"method": "divprun", "keep": 0.3}, "did you mean 'divprune'"),
        ({"method": "divprune", "keep": 0}, "keep=0 is not a budget"),
        ({"method": "divprune", "keep": 7.0}, "keep=7.0 is not a budget"),
        ({"method": "divprune"}, "needs a budget"),
        ({"method": "fastv", "keep": 0.3, "layer": 4}, "cannot act before decoder layer 4"),
        ({"method": "fastv", "keep": 0.3, "layer": 0}, "layer=0"),
        ({"method": "fastv:0.5 > divprune:0.5"}, "write 'divprune:0.5 > fastv@2:0.5'"),
        ({"method": "random", "keep": 0.3, "seed": "one"}, "must be a whole number"),
        ({"method": "divprune", "keep": 0.3, "positions": "shuffled"}, "choose from original and compact"),
        ({"method": "hiprune", "keep": 0.3, "beta": 1}, "has no option 'beta'"),
        ({"method": 3, "keep": 0.3}, "is not a method"),
        ({"method": "trim", "keep": 0.3, "text_tower": "openai/clip"}, "TextTower.from_pretrained"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as caught:
        vlmprune.prune(built("llava"), **arguments)
    assert "\n" not in str(caught.value)


def test_images_encoded_for_a_single_method() -> None:
    model, inputs = built("llava"), inputs_of("llava", RAGGED)
    with vlmprune.prune(model, "divprune:0.5"):
        expected = generate(model, inputs)
        again = generate(model, vlmprune.encode_images(model, inputs, "divprune").inputs())
    assert torch.equal(expected[1], again[1])


def test_two_sessions_on_one_model() -> None:
    model = built("llava")
    with vlmprune.prune(model, "divprune:0.3"), pytest.raises(UserError, match="chain methods in one recipe"):
        vlmprune.prune(model, "fastv:0.3").__enter__()
    with vlmprune.prune(model, "fastv:0.3"):
        pass


def test_two_models_at_once() -> None:
    first, second, inputs = built("llava"), copy.deepcopy(built("llava")), inputs_of("llava", RAGGED)
    with vlmprune.prune(first, "hiprune:0.3"):
        expected = generate(first, inputs)
    with vlmprune.prune(second, "fastv:0.5"), vlmprune.prune(first, "hiprune:0.3"):
        assert torch.equal(expected[1], generate(first, inputs)[1])
        assert not torch.equal(expected[1], generate(second, inputs)[1])


def test_a_method_that_reads_the_encoder_after_a_merge() -> None:
    model, inputs = built("llava"), inputs_of("llava", RAGGED)
    with vlmprune.prune(model, "visionzip:0.5 > hiprune:0.5"), pytest.raises(UserError, match="cannot follow"):
        model(**inputs)
    with vlmprune.prune(model, "visionzip:0.5 > divprune:0.5") as session:
        model(**inputs)
    assert session.last.tokens == [(72, 18), (36, 9)]


def test_a_method_inside_the_llm_that_reads_features_after_a_merge() -> None:
    """Merged tokens have no row among the encoder's; none may be lent to them in silence."""

    @dataclass
    class Norm(DecoderMethod, Scorer):
        name: ClassVar[str] = "norm"

        def needs(self, info: ModelInfo) -> dict[str, Need]:
            return {"features": Features()}

        def select(self, view: ImageView) -> torch.Tensor:
            return Scorer.select(self, view)

        def score(self, view: ImageView) -> torch.Tensor:
            return view["features"].norm(dim=1)

    model, inputs = built("llava"), inputs_of("llava", RAGGED)
    merged, dropped = (vlmprune.recipe(f"{first}:0.5").stages for first in ("visionzip", "divprune"))
    with vlmprune.prune(model, Recipe((*merged, Stage(Norm(), 0.5)))), pytest.raises(UserError, match="cannot follow"):
        model(**inputs)
    with vlmprune.prune(model, Recipe((*dropped, Stage(Norm(), 0.5)))) as session:
        model(**inputs)
    assert session.last.tokens == [(72, 18), (36, 9)]


def test_images_encoded_elsewhere() -> None:
    model, inputs = built("llava"), inputs_of("llava", RAGGED)
    outputs = {"image": model.model.get_image_features(inputs["pixel_values"], return_dict=True)}
    bare = {key: value for key, value in inputs.items() if key != "pixel_values"}
    with vlmprune.prune(model, "divprune:0.3"), pytest.raises(UserError, match="encode_images"):
        model(**bare, mm_encoder_outputs=outputs)
    with vlmprune.prune(model, "divprune:0.3"), pytest.raises(UserError, match="in one piece"):
        model.generate(**inputs, max_new_tokens=2, prefill_chunk_size=16)
    encoded = vlmprune.encode_images(model, inputs, ["divprune"])
    with vlmprune.prune(model, "hiprune:0.3"), pytest.raises(UserError, match="name it in encode_images"):
        model(**encoded.inputs())


def test_columns_align_shortened_logits_with_the_prompt() -> None:
    model, inputs = built("llava"), inputs_of("llava", RAGGED)
    with vlmprune.prune(model, "divprune:0.3") as session, torch.no_grad():
        logits = model(**inputs).logits
    columns = session.last.columns
    assert logits.shape[:2] == columns.shape
    ids = inputs["input_ids"]
    for row in range(2):
        slots = [column for column in columns[row].tolist() if column >= 0 and ids[row, column] == 90]
        first = int((ids[row] == 90).nonzero()[0])
        assert [slot - first for slot in slots[: len(session.last.kept[row][0])]] == session.last.kept[row][0].tolist()


def test_report_counts_tokens_after_the_cut_and_entering_a_layer() -> None:
    model, inputs = built("llava"), inputs_of("llava", [[0]])
    with vlmprune.prune(model, "divprune:18 > fastv@3:6") as session:
        model(**inputs)
    assert session.last.tokens == [(36, 6)]
    assert session.last.entering == [(18 * 3 + 6) / 4]
    assert [(layer, len(kept[0][0])) for layer, kept in session.last.stages] == [(0, 18), (3, 6)]
    assert session.last.grids[0][0].size == 36


@pytest.mark.parametrize("family", ["llava", "llava_next"])
def test_tokens_after_each_stage_count_those_without_a_slot(family: str) -> None:
    """VisionZip's CLS tokens."""
    with vlmprune.prune(built(family), "visionzip:12 > fastv@2:5") as session:
        built(family)(**inputs_of(family, [[0, 1], [2]]))
    assert session.last.counts == [(0, [24, 12]), (2, [10, 5])]
    assert [sum(map(len, kept)) for kept in session.last.stages[0][1]] < [24, 12]
