"""Families without an adapter: what the generic one prunes is exact, and what it cannot know is refused in words."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import pytest
import torch
import transformers
from harness_spies import Onlooker
from torch import Tensor

import vlmprune
from vlmprune import UserError, models
from vlmprune.core.budget import resolve_keep
from vlmprune.core.recipe import Recipe, Stage
from vlmprune.core.selectors import ascending, top_k
from vlmprune.core.signals import ClsAttention, LastQueryAttention, ReceivedAttention
from vlmprune.core.view import Grid
from vlmprune.models import adapter_for
from vlmprune.models.generic import GenericAdapter
from vlmprune.models.layout import misfit
from vlmprune.runtime.oracle import cutting_oracle, is_recurrent, masking_oracle
from vlmprune.testing import FAMILIES, Family, alone, image_numbers, pixtral, prompt, qwen
from vlmprune.testing.generic import GLM, MOLMO, USUAL, VIP_MANY, gemma4
from vlmprune.testing.images import Kind
from vlmprune.testing.weights import IMAGE, TEXT, VIDEO, builder, strengthen

TOLERANCE = 2e-4
STEPS = 3
CLASSES = {"llava": "LlavaForConditionalGeneration", "llava_next": "LlavaNextForConditionalGeneration"}
RAGGED: list[list[int | None]] = [[0, 1], [2]]
families = pytest.mark.parametrize("name", USUAL)
pytestmark = pytest.mark.usefixtures("unadapted")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@cache
def built(name: str) -> Any:
    return USUAL[name].build()


def generate(model: Any, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    out = model.generate(
        **inputs, max_new_tokens=STEPS, do_sample=False, return_dict_in_generate=True, output_logits=True
    )
    return out.sequences[:, inputs["input_ids"].shape[1] :], torch.stack(out.logits, dim=1)


def largest(a: Tensor, b: Tensor) -> float:
    return float((a - b).detach().abs().max())


@families
def test_keeping_everything_is_bit_identical_and_all_is_undone(name: str) -> None:
    model, inputs = built(name), prompt(USUAL[name], RAGGED)
    assert type(adapter_for(model)) is GenericAdapter
    tokens, logits = generate(model, inputs)
    with vlmprune.prune(model, "divprune", keep=1.0):
        same = generate(model, inputs)
    assert torch.equal(tokens, same[0]) and torch.equal(logits, same[1])
    with vlmprune.prune(model, "divprune", keep=0.4):
        assert largest(generate(model, inputs)[1][:, 0], logits[:, 0]) > 50 * TOLERANCE
    assert torch.equal(generate(model, inputs)[1], logits)


@families
@pytest.mark.parametrize("positions", ["original", "compact"])
def test_equals_the_oracle(name: str, positions: str) -> None:
    model, family = built(name), USUAL[name]
    samples = [[0, 1]] if is_recurrent(model) else RAGGED  # the cutting oracle takes one sample
    inputs = prompt(family, samples)
    with vlmprune.prune(model, "divprune:0.4 > fastv@2:0.5", positions=positions) as session:
        tokens, logits = generate(model, inputs)
    oracle = cutting_oracle if is_recurrent(model) else masking_oracle
    policies, numbers = {0: positions, 2: positions}, image_numbers(family, samples)
    assert largest(logits, oracle(model, inputs, tokens, session.last, policies, numbers)) < TOLERANCE


@families
def test_budget_is_exact_and_a_batch_is_each_sample_alone(name: str) -> None:
    model, family = built(name), USUAL[name]
    inputs = prompt(family, RAGGED)
    for method, keep in (("random@2", 3), ("dart", 0.3)):
        with vlmprune.prune(model, method, keep) as session:
            tokens, logits = generate(model, inputs)
            kept = session.last.kept
            for row, seeds in enumerate(RAGGED):
                slots = [family.slots(seed) for seed in seeds if seed is not None]
                assert [len(image) for image in kept[row]] == [resolve_keep(keep, count) for count in slots]
                single = generate(model, alone(family, RAGGED, row))
                assert torch.equal(tokens[row], single[0][0]) and largest(logits[row], single[1][0]) < TOLERANCE
                assert all(torch.equal(a, b) for a, b in zip(kept[row], session.last.kept[0], strict=True))


@torch.no_grad()
@families
def test_looking_ahead_shows_what_the_layer_then_does(name: str) -> None:
    """A layer may name its norm in its own way, scale queries by position ids, or need more than states and masks."""
    model, inputs, rows = built(name), prompt(USUAL[name], RAGGED), []
    for layer, need in ((1, LastQueryAttention(ahead=True)), (2, LastQueryAttention())):
        spy = Onlooker(layer, {"row": need}, images=0)  # drops nothing
        with vlmprune.prune(model, Recipe((Stage(spy, 0.5),))):
            model(**inputs)
        rows.append([seen["row"] for seen in spy.seen])
    assert len(rows[0]) == 3 and all(largest(a, b) < 1e-5 for a, b in zip(*rows, strict=True))
    with vlmprune.prune(model, "pyramiddrop", keep=0.5, layers=(1,)) as session:
        model(**inputs)
    for row, kept in zip(rows[1], [kept for sample in session.last.kept for kept in sample], strict=True):
        assert torch.equal(ascending(top_k(row, len(kept))), kept)


@pytest.mark.parametrize("name", ["llava", "llava with SigLIP", "qwen2_5_vl", "qwen3_vl", "qwen3_5", "llava_next"])
def test_agrees_with_a_family_s_own_adapter(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is not told of the family keeps the same tokens; encoder statistics too where it has them."""
    family = FAMILIES[name]
    model, inputs = family.build(), prompt(family, RAGGED)
    specs = ["divprune(per='image'):0.4 > fastv@2:0.5", *(["hiprune:0.4"] if name.startswith("llava w") else [])]
    runs = []
    for _ in range(2):
        for spec in specs:
            with vlmprune.prune(model, spec, positions="compact") as session:
                runs.append((generate(model, inputs), session.last.kept))
        monkeypatch.setattr(models, "FAMILIES", {})
    assert type(adapter_for(model)) is GenericAdapter
    for (own, kept), (other, others) in zip(runs[: len(specs)], runs[len(specs) :], strict=True):
        assert torch.equal(own[1], other[1])
        assert all(torch.equal(a, b) for x, y in zip(kept, others, strict=True) for a, b in zip(x, y, strict=True))


# ---------------------------------------------------------------- the encoder


@pytest.mark.parametrize(("name", "cls"), [("vipllava", True), ("deepseek_vl", False)])
def test_encoder_statistics_where_every_slot_is_a_patch(name: str, cls: bool) -> None:
    model, inputs = built(name), prompt(USUAL[name], RAGGED)
    adapter = adapter_for(model)
    assert adapter.has_cls is cls and adapter.used_layer == (3 if cls else 4)
    rows: list[Tensor] = []

    def keep(module: Any, args: Any, output: Any) -> None:
        rows.extend(output[1].mean(1)[:, 0, 1:] if cls else output[1].mean((1, 2)))

    eager = copy.deepcopy(model)
    eager.set_attn_implementation("eager")
    adapter_for(eager).encoder_attentions()[adapter.used_layer].register_forward_hook(keep)
    eager.model.get_image_features(inputs["pixel_values"])
    with vlmprune.prune(model, "visionzip", keep=9) as session:
        record = model.model.get_image_features(inputs["pixel_values"]).vlmprune_record
        model(**inputs)
    for image, expected in zip(record.images, rows, strict=True):
        signal = next(
            value for key, value in image.signals.items() if isinstance(key, ClsAttention | ReceivedAttention)
        )
        torch.testing.assert_close(signal, expected, atol=1e-6, rtol=0)
    assert session.last.grids == [[Grid(6, 6), Grid(6, 6)], [Grid(6, 6)]]
    assert session.last.tokens == [(72, 18), (36, 9)]


def test_statistics_without_a_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every slot shows a patch even where nobody knows which."""
    model, inputs = built("vipllava"), prompt(USUAL["vipllava"], RAGGED)
    with vlmprune.prune(model, "visionzip", keep=9) as session:
        model(**inputs)
        expected = session.last.kept
        monkeypatch.setattr(GenericAdapter, "_patch_grid", lambda self, pixels: None)
        model(**inputs)
    assert session.last.grids == [[None, None], [None]]
    assert all(torch.equal(a, b) for x, y in zip(expected, session.last.kept, strict=True) for a, b in zip(x, y))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("mistral3", "does not make one token for each"),
        ("aya_vision", "does not make one token for each"),
        ("llava_next_video video", "does not make one token for each"),
        ("aria", "a resampler"),
        ("idefics2", "a resampler"),
        ("got_ocr2", "no single stack"),
        ("molmo2", "attention stands between"),
    ],
)
def test_methods_that_read_the_encoder_are_refused_in_words(name: str, reason: str) -> None:
    model, inputs = built(name), prompt(USUAL[name], [[0]])
    for method in ("hiprune", "visionzip"):
        with pytest.raises(UserError, match=reason) as caught, vlmprune.prune(model, method, keep=0.5):
            model(**inputs)
        assert "\n" not in str(caught.value) and str(caught.value).startswith("Methods that read the vision encoder")
    with pytest.raises(UserError, match="resize"), vlmprune.prune(model, "downsample", keep=0.5):
        model(**inputs)


def test_what_needs_no_encoder_runs_without_one() -> None:
    """CDPruner compares the question with the LLM's own embeddings where the tower is not to be read."""
    model = built("got_ocr2")
    with vlmprune.prune(model, "cdpruner", keep=0.5) as session:
        model(**prompt(USUAL["got_ocr2"], [[0]]))
    assert session.last.tokens == [(4, 2)]


def test_a_decoder_layer_without_the_mlp_that_a_method_reads() -> None:
    with pytest.raises(UserError, match="the MLP of decoder layer 2"):
        vlmprune.prune(built("lfm2_vl"), "topv", keep=0.5)


def test_features_of_several_encoder_layers() -> None:
    model = VIP_MANY.build()
    with pytest.raises(UserError, match="several encoder layers"), vlmprune.prune(model, "hiprune", keep=0.5):
        pass
    with vlmprune.prune(model, "divprune", keep=0.5) as session:
        model(**prompt(VIP_MANY, [[0]]))
    assert session.last.tokens == [(36, 18)]


@torch.no_grad()
def test_a_variant_that_its_family_s_adapter_does_not_know() -> None:
    """LLaVA with Pixtral's tower and several of its layers."""
    build = builder(
        "Llava", pixtral.TOWER, {"model_type": "mistral", **TEXT}, image_token_id=IMAGE, vision_feature_layer=[-2, -1],
        vision_feature_select_strategy="full",
    )  # fmt: skip
    family = Family("llava", build, pixtral.pictures(1))
    model, inputs = build(), prompt(family, RAGGED)
    with vlmprune.prune(model, "divprune:0.5 > fastv@2:0.5", positions="original") as session:
        tokens, logits = generate(model, inputs)
    assert type(adapter_for(model)) is GenericAdapter and session.last.tokens == [(64, 16), (36, 9)]
    expected = masking_oracle(model, inputs, tokens, session.last, image=image_numbers(family, RAGGED))
    assert largest(logits, expected) < TOLERANCE
    with pytest.raises(UserError, match="several encoder layers"), vlmprune.prune(model, "hiprune", keep=0.5):
        pass


@torch.no_grad()
@pytest.mark.parametrize("name", ["llava", "llava_next"])
def test_a_family_s_variant_with_features_of_several_layers(name: str) -> None:
    own = FAMILIES[name].build().config.to_dict()
    config = getattr(transformers, CLASSES[name]).config_class.from_dict({**own, "vision_feature_layer": [-2, -1]})
    model = strengthen(getattr(transformers, CLASSES[name])(config))
    inputs = prompt(FAMILIES[name], RAGGED)
    with vlmprune.prune(model, "divprune:0.5 > fastv@2:0.5", positions="original") as session:
        tokens, logits = generate(model, inputs)
    numbers = image_numbers(FAMILIES[name], RAGGED)
    assert largest(logits, masking_oracle(model, inputs, tokens, session.last, image=numbers)) < TOLERANCE
    assert [after < before for before, after in session.last.tokens] == [True, True]
    with pytest.raises(UserError, match="several encoder layers"), vlmprune.prune(model, "hiprune", keep=0.5):
        pass


# ---------------------------------------------------------------- what is looked at, not taken for granted


@torch.no_grad()
def test_each_layer_gets_its_own_rotary_embedding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against Molmo 2's own table of which layer gets which."""
    model, inputs = built("molmo2"), prompt(USUAL["molmo2"], RAGGED)
    with vlmprune.prune(model, "divprune:0.6 > fastv@2:0.5", positions="compact") as session:
        tokens, logits = generate(model, inputs)
    text = model.model.language_model
    assert text.rope_types == ["unscaled", "scaled"] * 2

    def table(self: Any, layer: int, positions: Tensor, given: Any, given_positions: Any) -> Any:
        own = {"scaled": text.rotary_emb, "unscaled": text.rotary_emb_unscaled}[text.rope_types[layer]]
        return own(given[0], positions)

    monkeypatch.setattr(GenericAdapter, "rotary_at", table)
    numbers = image_numbers(USUAL["molmo2"], RAGGED)
    expected = masking_oracle(model, inputs, tokens, session.last, {0: "compact", 2: "compact"}, numbers)
    assert largest(logits, expected) < TOLERANCE


@torch.no_grad()
def test_a_rotary_embedding_that_nothing_makes() -> None:
    """Re-numbering is refused, and what needs none goes on."""
    model, inputs = MOLMO(), prompt(USUAL["molmo2"], RAGGED)

    def turned(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        cos, sin = kwargs["position_embeddings"]
        return args, {**kwargs, "position_embeddings": (sin, cos)}

    model.model.language_model.layers[3].register_forward_pre_hook(turned, with_kwargs=True)
    with (
        vlmprune.prune(model, "fastv@2:0.5", positions="compact"),
        pytest.raises(UserError, match=r"layer 3 of molmo2 gets positions by a rule.*positions='original'"),
    ):
        model(**inputs)
    with vlmprune.prune(model, "fastv@2:0.5", positions="original") as session:
        generate(model, inputs)
    assert session.last.tokens == [(18, 8), (9, 4)]


@torch.no_grad()
def test_rotary_embeddings_that_are_equal_so_far_are_told_apart_later() -> None:
    adapter = adapter_for(built("molmo2"))
    text, like = adapter.text_model, torch.zeros(1, 1, 8)
    start, later = torch.zeros(1, 1).long(), torch.tensor([[40]])
    assert torch.equal(
        adapter.rotary_at(0, later, text.rotary_emb(like, start), start)[0], text.rotary_emb(like, later)[0]
    )
    for layer, own in ((0, text.rotary_emb_unscaled), (1, text.rotary_emb)):
        found = adapter.rotary_at(layer, later, own(like, later), later)
        assert torch.equal(found[0], own(like, later)[0]) and torch.equal(found[1], own(like, later)[1])


def entering(model: Any, inputs: dict[str, Tensor], spec: str) -> tuple[Tensor, Any]:
    """[B, P, D] what enters the first decoder layer, and the report."""
    seen: list[Tensor] = []
    layer = model.model.language_model.layers[0]
    with vlmprune.prune(model, spec, positions="original") as session:
        handle = layer.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
        model(**inputs)
        handle.remove()
    return seen[0], session.last


MERGERS = ["tome:0.5", "trim:0.5", "pool:0.5"]


@torch.no_grad()
@pytest.mark.parametrize("spec", MERGERS)
def test_new_tokens_of_a_model_that_adds_features_to_the_placeholder(
    spec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are those of the same model with nothing at the placeholder, and its embedding on top."""
    monkeypatch.setattr(GenericAdapter, "_patch_grid", lambda self, pixels: Grid(3, 3))  # pool needs one
    model, inputs = MOLMO(), prompt(USUAL["molmo2"], RAGGED)
    table = model.get_input_embeddings().weight
    placeholder = table[IMAGE].clone()
    found, report = entering(model, inputs, spec)
    table[IMAGE] = 0
    bare, same = entering(model, inputs, spec)
    assert any(report.merged) and torch.equal(report.columns, same.columns)
    image = torch.zeros_like(report.columns, dtype=torch.bool)
    for row, columns in enumerate(report.columns):
        image[row] = (columns >= 0) & (inputs["input_ids"][row, columns.clamp(min=0)] == IMAGE)
    assert image.sum(1).tolist() == [after for _, after in report.tokens]
    assert largest(found, bare + image[..., None] * placeholder) < 1e-6 and float(placeholder.abs().max()) > 0.1


@torch.no_grad()
@pytest.mark.parametrize("spec", MERGERS[:2])
def test_features_that_are_changed_on_their_way(spec: str) -> None:
    model, inputs = USUAL["vipllava"].build(), prompt(USUAL["vipllava"], RAGGED)

    def scaled(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        return args, {**kwargs, "inputs_embeds": 2 * kwargs["inputs_embeds"]}

    model.model.language_model.register_forward_pre_hook(scaled, with_kwargs=True)
    with (
        vlmprune.prune(model, spec),
        pytest.raises(UserError, match=r"vipllava changes the encoder's features before .* only drop tokens"),
    ):
        model(**inputs)
    with vlmprune.prune(model, "divprune:0.5") as session:
        model(**inputs)
    assert session.last.tokens == [(72, 36), (36, 18)]


def test_molmo_whose_images_see_themselves_in_both_directions() -> None:
    """With `mm_token_type_ids`, all images of a sample are one block."""
    model, inputs = built("molmo2"), prompt(USUAL["molmo2"], RAGGED)
    types = {"mm_token_type_ids": (inputs["input_ids"] == IMAGE).int()}
    with vlmprune.prune(model, "divprune", keep=0.5), pytest.raises(UserError, match="in both directions"):
        model.generate(**inputs, **types, max_new_tokens=2)


# ---------------------------------------------------------------- what it cannot know


@torch.no_grad()
@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ({"use_bidirectional_attention": "vision"}, "in both directions"),
        ({"hidden_size_per_layer_input": 8}, "hands its language model 'per_layer_inputs'"),
    ],
)
def test_a_prompt_that_cannot_be_cut(text: dict[str, Any], reason: str) -> None:
    family = USUAL["gemma4"]
    model, inputs = gemma4(**text)(), prompt(family, RAGGED)
    expected = model(**inputs).logits
    with vlmprune.prune(model, "divprune", keep=0.5), pytest.raises(UserError, match=reason):
        model(**inputs)
    assert torch.equal(expected, model(**inputs).logits)


def test_a_video_whose_placeholders_are_not_known() -> None:
    """GLM-4.1V writes the image placeholder for video frames."""

    def video(seed: int) -> tuple[dict[str, Tensor], list[int]]:
        arguments, ids = qwen.video(timestamps=True).image(seed)
        return arguments, [IMAGE if token == VIDEO else token for token in ids]

    family = Family("glm4v", GLM, Kind(video, lambda seed: []), types=("mm_token_type_ids", (0, 2, 2)))
    model, inputs = family.build(), prompt(family, [[0]])
    generate(model, inputs)
    with vlmprune.prune(model, "divprune", keep=0.5), pytest.raises(UserError, match="0 video placeholder tokens"):
        generate(model, inputs)


def test_a_modality_without_a_feature_function() -> None:
    adapter = adapter_for(built("aya_vision"))
    with pytest.raises(UserError, match="prunes no videos with aya_vision"):
        adapter.blocks({"pixel_values_videos": torch.zeros(1)})
    assert adapter.blocks({"pixel_values": torch.zeros(1)}) is None


@pytest.mark.parametrize(
    ("positions", "known"),
    [((2, 5), True), ((1, 5), True), ((3, 2, 5), True), ((4, 2, 5), True), ((2, 4, 5), False), ((5, 2, 5), False)],
)
def test_positions(positions: tuple[int, ...], known: bool) -> None:
    adapter = adapter_for(built("glm4v"))
    call = {"inputs_embeds": torch.zeros(2, 5, 32), "position_ids": torch.zeros(positions)}
    if known:
        adapter.check_prompt(call)
        return
    with pytest.raises(UserError, match="counts positions in a way"):
        adapter.check_prompt(call)


def test_masks() -> None:
    adapter = adapter_for(built("mistral3"))
    call: dict[str, Any] = {"inputs_embeds": torch.zeros(1, 4, 32)}
    causal = torch.ones(4, 4, dtype=torch.bool).tril()[None, None]
    room = torch.nn.functional.pad(causal, (0, 6))  # a static cache
    for mask in (None, torch.ones(1, 4), causal, room, {"full_attention": causal, "sliding_attention": None}):
        adapter.check_prompt({**call, "attention_mask": mask})
    adapter.check_prompt({**call, "attention_mask": torch.zeros(1, 1, 4, 4).masked_fill(~causal, -1e9)})
    ahead = causal.clone()
    ahead[..., 1, 2] = True
    for mask in (ahead, {"full_attention": causal, "sliding_attention": ahead}):
        with pytest.raises(UserError, match="in both directions"):
            adapter.check_prompt({**call, "attention_mask": mask})
    with pytest.raises(UserError, match="attention masks of its own"):
        adapter.check_prompt({**call, "attention_mask": object()})
    cache = transformers.DynamicCache()  # of nine tokens, of which a sliding window shows the last two
    cache.update(torch.zeros(1, 1, 9, 8), torch.zeros(1, 1, 9, 8), 0)
    window = torch.nn.functional.pad(causal[..., :4], (2, 0), value=True)
    adapter.check_prompt({**call, "attention_mask": window, "cache": cache})
    window[..., 1, 4] = True
    with pytest.raises(UserError, match="in both directions"):
        adapter.check_prompt({**call, "attention_mask": window, "cache": cache})


def small(name: str, **parts: Any) -> Any:
    """A model of another layout, just built, never run."""
    return getattr(transformers, f"{name}ForConditionalGeneration")(getattr(transformers, f"{name}Config")(**parts))


VISION = {
    "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "image_size": 16,
    "patch_size": 4,
}  # fmt: skip


@pytest.mark.parametrize(
    ("build", "missing"),
    [
        (lambda: FAMILIES["llava"].build().model.language_model, "found neither.*if this is a part"),
        (lambda: transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**TEXT)), "language_model or .*found neither"),
        (
            lambda: small(
                "Mllama",
                vision_config={
                    **VISION, "attention_heads": 2, "num_global_layers": 1, "vision_output_dim": 64,
                    "intermediate_layers_indices": [0], "supported_aspect_ratios": [[1, 1]],
                },
                text_config={**TEXT, "cross_attention_layers": [1]},
            ),
            "get_image_features in its MllamaModel, found none",
        ),
        (
            lambda: small(
                "Florence2",
                vision_config={
                    "embed_dim": [8, 16], "depths": [1, 1], "num_heads": [2, 2], "num_groups": [2, 2],
                    "patch_size": [7, 3], "patch_stride": [4, 2], "patch_padding": [3, 1],
                    "patch_prenorm": [False, True], "projection_dim": 32,
                },
                text_config={
                    "model_type": "bart", "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "vocab_size": 96,
                    "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 32,
                    "decoder_ffn_dim": 32,
                },
                image_token_id=IMAGE,
            ),
            "looked for layers",
        ),
        (gemma4(num_kv_shared_layers=2), "share keys and values"),
    ],
    ids=["text model", "text only", "mllama", "florence2", "gemma4"],
)  # fmt: skip
def test_another_layout(build: Any, missing: str) -> None:
    with pytest.raises(UserError, match=rf"cannot prune a .*{missing}.*adding-a-family") as caught:
        vlmprune.prune(build(), "divprune", keep=0.3)
    assert "\n" not in str(caught.value)


def test_each_thing_looked_for() -> None:
    """The parts of a usual model one after another, until nothing is missing."""
    inner: Any = torch.nn.Module()
    text = transformers.LlamaModel(transformers.LlamaConfig(**TEXT))
    inner.config = transformers.LlamaConfig(**TEXT)
    assert "language_model" in str(misfit(inner))
    inner.language_model = text
    assert "get_image_features" in str(misfit(inner))
    inner.get_image_features = print
    assert "image_token_id" in str(misfit(inner))
    inner.config.image_token_index = IMAGE
    assert misfit(inner) is None
    inner.config.layer_types = ["chunked_attention"] * 4
    assert "of a kind unknown to vlmprune (chunked_attention)" in str(misfit(inner))
    inner.config.layer_types, inner.config.attention_chunk_size = None, 8192
    assert "of a kind unknown to vlmprune (chunked_attention)" in str(misfit(inner))
    inner.config.attention_chunk_size = None
    text.layers[2].self_attn.is_causal = False
    assert "decoder layer 2 attends in both directions" in str(misfit(inner))
    text.layers[1].self_attn = torch.nn.Identity()
    assert "attention in decoder layer 1, found none" in str(misfit(inner))
    text.layers[0] = torch.nn.Linear(2, 2)
    assert "position_embeddings" in str(misfit(inner))
    del text.rotary_emb
    assert "looked for rotary_emb in its LlamaModel" in str(misfit(inner))


def test_features_that_are_not_where_they_belong() -> None:
    adapter = adapter_for(built("mistral3"))
    with pytest.raises(UserError, match="looked for pooler_output"):
        adapter.features("image", {}, None)
    with pytest.raises(UserError, match="does not say where"):
        adapter.features("image", {"pixel_values": torch.zeros(2, 3, 4, 4)}, torch.zeros(6, 8))
    assert [len(f) for f in adapter.features("image", {"pixel_values": torch.zeros(1)}, torch.zeros(6, 8))] == [6]
    pieces = [torch.zeros(4, 8), torch.zeros(0, 8), torch.zeros(2, 3, 8)]  # a sample without images among them
    assert [len(f) for f in adapter.features("image", {}, pieces)] == [4, 6]


def test_slots_are_as_many_as_the_call_at_hand_has_features() -> None:
    """Whatever was encoded before; and a picture that is not encoded yet has an unknown number of them."""
    adapter, call = adapter_for(built("mistral3")), {"pixel_values": torch.zeros(2, 3, 4, 4)}
    adapter.features("image", call, [torch.zeros(6, 8)])
    assert [len(place.cells) for place in adapter.slots("image", call, [3, 5])] == [3, 5]
    with pytest.raises(UserError, match="cannot resize"):
        adapter.slots("image", call)
