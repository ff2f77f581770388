"""Options of the vision encoder that are given in a call, and so not to be read from the configuration."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from harness import TOLERANCE, built, generate, largest, policies
from torch import Tensor

import vlmprune
from vlmprune.core.errors import UserError
from vlmprune.models import adapter_for
from vlmprune.models.llava import LlavaAdapter
from vlmprune.runtime import vision
from vlmprune.runtime.encoder_reading import encoder_needs
from vlmprune.runtime.oracle import masking_oracle
from vlmprune.testing import FAMILIES, Family, image_numbers, prompt
from vlmprune.testing.generic import USUAL
from vlmprune.testing.weights import IMAGE, VIDEO

Options = dict[str, Any]
LAYERS: list[Options] = [{"vision_feature_layer": -1}, {"vision_feature_layer": -3}, {"vision_feature_layer": 2}]
FULL: Options = {"vision_feature_select_strategy": "full"}
ASKED: list[tuple[str, Options]] = [
    *(("llava", options) for options in (*LAYERS, FULL, {**FULL, **LAYERS[0]})),
    *(("llava with SigLIP", options) for options in LAYERS[1:]),
    *(("llava_next", options) for options in LAYERS[:2]),
    ("llava_onevision", LAYERS[2]),
    *(("llava_onevision", {"vision_aspect_ratio": ratio}) for ratio in ("anyres_max_1", "anyres_max_9")),
    ("llava_onevision video", LAYERS[2]),
    *(("video_llava", options) for options in (LAYERS[0], FULL)),
    *(("video_llava video", options) for options in LAYERS[:2]),
    ("video_llava mixed", LAYERS[0]),
    ("internvl", LAYERS[2]),
]
SAMPLES: list[list[int | None]] = [[0, 1], [2]]
METHODS = ["divprune:0.3", "hiprune:0.3", "fastervlm:0.3", "holov:0.3", "fastv@2:0.3", "divprune:0.5 > mustdrop:0.5"]
MERGING = ["visionzip:0.3", "prumerge:0.3", "recoverable:0.3"]
ELSEWHERE = ["hiprune:0.3", "visionzip:0.3", "divprune:0.5 > mustdrop:0.5"]  # on other families than LLaVA
asked = pytest.mark.parametrize(("family", "options"), ASKED, ids=str)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@cache
def _configured(family: str, options: tuple[tuple[str, Any], ...]) -> Any:
    model = FAMILIES[family].build()
    for name, value in options:
        setattr(model.config, name, value)
    return model


def configured(family: str, options: Options) -> Any:
    """The model with these options in its configuration."""
    return _configured(family, tuple(options.items()))


def kind_of(family: str, options: Options) -> Family:
    """The family with as many placeholders an image as the unpruned model makes features."""
    own, inner = FAMILIES[family], built(family).model

    def image(seed: int) -> tuple[dict[str, Tensor], list[int]]:
        arguments, ids = own.image(seed)
        token = VIDEO if VIDEO in ids else IMAGE
        encode = inner.get_video_features if token == VIDEO else inner.get_image_features
        fitting = {k: v for k, v in options.items() if token == IMAGE or k != "vision_aspect_ratio"}
        if family.startswith("video_llava") and token == VIDEO:
            fitting.pop("vision_feature_select_strategy", None)
        count = sum(len(piece) for piece in encode(**arguments, **fitting, return_dict=True).pooler_output)
        first = ids.index(token)
        last = len(ids) - ids[::-1].index(token)
        if count == last - first:
            return arguments, ids
        return arguments, [*ids[:first], *[token] * count, *ids[last:]]

    return replace(own, kind=replace(own.kind, image=image))


def inputs_for(family: str, options: Options) -> dict[str, Tensor]:
    return prompt(kind_of(family, options), SAMPLES)


def same(a: list[list[Tensor]], b: list[list[Tensor]]) -> bool:
    return all(torch.equal(x, y) for rows in zip(a, b, strict=True) for x, y in zip(*rows, strict=True))


@asked
def test_a_call_that_asks_is_a_model_configured_so(family: str, options: Options) -> None:
    """Forward, `generate` (which encodes beforehand), beams and images encoded once: same choice, same logits."""
    inputs = inputs_for(family, options)
    model, other = built(family), configured(family, options)
    differ = False
    for method in [*METHODS, *MERGING] if family == "llava" else ELSEWHERE:
        with vlmprune.prune(other, method) as session:
            expected = other(**inputs).logits
            tokens = generate(other, inputs)[0]
            beams = generate(other, inputs, num_beams=3)[0]
            report = session.last
        with vlmprune.prune(model, method) as session:
            if "vision_aspect_ratio" not in options:  # LLaVA-OneVision's forward forgets it
                assert largest(model(**inputs, **options).logits, expected) < TOLERANCE
                assert same(session.last.kept, report.kept) and session.last.layers == report.layers
            assert torch.equal(generate(model, {**inputs, **options})[0], tokens)
            assert same(session.last.kept, report.kept) and session.last.layers == report.layers
            assert torch.equal(generate(model, {**inputs, **options}, num_beams=3)[0], beams)
            encoded = vlmprune.encode_images(model, {**inputs, **options}, method)
            assert torch.equal(generate(model, encoded.inputs())[0], tokens)
            assert same(session.last.kept, report.kept) and session.last.layers == report.layers
            differ |= not configuration_agrees(model, inputs, options, session, report.kept)
    assert differ


def configuration_agrees(
    model: Any, inputs: dict[str, Tensor], options: Options, session: vlmprune.Session, kept: list[list[Tensor]]
) -> bool:
    """Whether the configuration's own settings would do the same: then the test would show nothing."""
    try:
        model(**inputs)
    except (UserError, ValueError):
        return False  # other numbers of features
    return same(session.last.kept, kept)


@pytest.mark.parametrize(("family", "options"), [a for a in ASKED if "vision_aspect_ratio" not in a[1]], ids=str)
def test_the_oracle_holds(family: str, options: Options) -> None:
    inputs, model = {**inputs_for(family, options), **options}, built(family)
    numbers = image_numbers(kind_of(family, options), SAMPLES)
    for method in METHODS[:4]:
        with vlmprune.prune(model, method) as session:
            tokens, logits = generate(model, inputs)
        expected = masking_oracle(model, inputs, tokens, session.last, policies(method, family), numbers)
        assert largest(logits, expected) < TOLERANCE


@pytest.mark.parametrize("family", ["llava", "llava_next", "video_llava video", "internvl"])
def test_keeping_everything_is_bit_identical(family: str) -> None:
    options = LAYERS[2]
    inputs = {**inputs_for(family, options), **options}
    tokens, logits = generate(built(family), inputs)
    with vlmprune.prune(built(family), "visionzip", keep=1.0):
        again = generate(built(family), inputs)
    assert torch.equal(tokens, again[0]) and torch.equal(logits, again[1])


def test_merging_inside_the_encoder_ends_at_the_layer_asked_for() -> None:
    inputs, options = inputs_for("llava", {}), LAYERS[0]
    other = configured("llava", options)
    with vlmprune.prune(other, "tome(inside=True):0.3") as session:
        expected, slots = other(**inputs).logits, session.last.kept
    with vlmprune.prune(built("llava"), "tome(inside=True):0.3") as session:
        assert largest(built("llava")(**inputs, **options).logits, expected) < TOLERANCE
        assert same(session.last.kept, slots)
        assert largest(built("llava")(**inputs).logits, expected) > 50 * TOLERANCE


def test_resized_pictures() -> None:
    inputs, options = inputs_for("llava", {}), LAYERS[2]
    other = configured("llava", options)
    with vlmprune.prune(other, "downsample:0.3"):
        expected = other(**inputs).logits
    with vlmprune.prune(built("llava"), "downsample:0.3"):
        assert largest(built("llava")(**inputs, **options).logits, expected) < TOLERANCE


def test_by_position() -> None:
    """As arguments of `get_image_features` without their names."""
    inputs, model, other = inputs_for("llava", {}), built("llava"), configured("llava", LAYERS[0])
    text = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    with vlmprune.prune(other, "visionzip:0.3"):
        expected = other(**inputs).logits
    with vlmprune.prune(model, "visionzip:0.3") as session:
        encoded = model.model.get_image_features(inputs["pixel_values"], -1)
        assert largest(model(**text, mm_encoder_outputs={"image": encoded}).logits, expected) < TOLERANCE
        assert set(session.last.layers.values()) == {4}
        model(**inputs)
        assert set(session.last.layers.values()) == {3}  # the next call is the configuration's again


def test_two_calls_in_turn() -> None:
    """Nothing is left of the call before; None is the configuration's."""
    inputs, model, layers = inputs_for("llava", {}), built("llava"), []
    with vlmprune.prune(model, "visionzip:0.3") as session:
        for options in (LAYERS[0], {}, LAYERS[1], {"vision_feature_layer": None}):
            model(**inputs, **options)
            layers += [set(session.last.layers.values())]
    assert layers == [{4}, {3}, {2}, {3}]


@torch.no_grad()
def test_needs_are_resolved_again_only_for_a_call_that_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, model, resolved = inputs_for("llava", {}), built("llava"), []

    def noting(*given: Any) -> Any:
        resolved.append(given)
        return encoder_needs(*given)

    monkeypatch.setattr(vision, "encoder_needs", noting)
    with vlmprune.prune(model, "visionzip:0.3"):
        before = len(resolved)
        for options, times in (({}, 0), ({}, 0), (LAYERS[0], 1), ({}, 1)):
            model(**inputs, **options)
            assert len(resolved) == before + times


@pytest.mark.parametrize(
    ("family", "options", "message"),
    [
        ("llava", {"vision_feature_layer": [-2, -1]}, r"cannot follow vision_feature_layer=\[-2, -1\] in a call"),
        ("internvl", {"vision_feature_layer": [-1]}, "set it in model.config instead"),
        ("llava with SigLIP", {"vision_feature_select_strategy": "default"}, "cannot follow vision_feature_select"),
        ("llava", {"vision_feature_layer": -9}, "No encoder layer makes the features of vision_feature_layer=-9"),
        ("llava", {"vision_feature_layer": 0}, "there are 5"),
    ],
)
def test_what_cannot_be_followed_is_refused(family: str, options: Options, message: str) -> None:
    inputs, model = inputs_for(family, {}), built(family)
    for call in (lambda x: model(**x), lambda x: model.generate(**x, max_new_tokens=2)):
        with vlmprune.prune(model, "hiprune:0.3"), pytest.raises(UserError, match=message):
            call({**inputs, **options})
    model(**inputs)  # and the model is as it was


def test_a_tower_without_cls_whose_first_patch_is_left_out() -> None:
    """By its configuration: no adapter of LLaVA's describes it, and what reads no encoder works."""
    model = copy.deepcopy(built("llava with SigLIP"))
    model.config.vision_feature_select_strategy = "default"
    assert not isinstance(adapter_for(model), LlavaAdapter)
    inputs = inputs_for("llava with SigLIP", {"vision_feature_select_strategy": "default"})
    with vlmprune.prune(model, "divprune:0.3") as session:
        model(**inputs)
    assert session.last.tokens[1][0] == 35


@pytest.mark.usefixtures("unadapted")
@pytest.mark.parametrize("name", ["vipllava", "aya_vision", "llava_next_video", "llava_next_video video"])
def test_the_generic_adapter_follows_too(name: str) -> None:
    """It reads the encoder where every patch has a slot, and counts features everywhere."""
    family, options = USUAL[name], LAYERS[2]
    model, other, inputs = family.build(), family.build(), prompt(family, [[0, 1]])
    other.config.vision_feature_layer = options["vision_feature_layer"]
    method = "visionzip:0.5" if name == "vipllava" else "divprune:0.5"
    with vlmprune.prune(other, method) as session:
        expected, report = other(**inputs).logits, session.last
    with vlmprune.prune(model, method) as session:
        assert largest(model(**inputs, **options).logits, expected) < TOLERANCE
        assert same(session.last.kept, report.kept) and session.last.layers == report.layers
        assert largest(model(**inputs).logits, expected) > 50 * TOLERANCE
