"""Checks that what methods read is what the unpruned model computes, by eager attention and hooks."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vlmprune.core.method import DecoderMethod, Method
from vlmprune.core.needs import USED, DecoderNeed, DecoderReading, EncoderLayer, EncoderNeed, EncoderReading, Need
from vlmprune.core.recipe import Recipe, Stage
from vlmprune.core.signals import (
    ClsAttention,
    DecoderStates,
    HiddenStates,
    LastQueryAttention,
    LayerInput,
    LayerOutput,
    MlpInput,
    ReceivedAttention,
    TextQueryAttention,
    TowerFeatures,
)
from vlmprune.core.view import ImageView, TowerRows
from vlmprune.models import adapter_for
from vlmprune.runtime.session import prune
from vlmprune.testing.adapter_checks import of_adapter
from vlmprune.testing.adapter_subject import AdapterSubject
from vlmprune.testing.check import Failed, Skipped
from vlmprune.testing.decoder import following, watched
from vlmprune.testing.family import SEEDS, prompt
from vlmprune.testing.tower import Expected, Layer, recording, tower_layers

EXACT = 1e-4  # of the largest number; a row of another token is three orders of magnitude away


@dataclass(frozen=True)
class _Tower(EncoderNeed):
    """The "queries", "keys", "values" or "states" of an encoder layer."""

    part: str
    layer: EncoderLayer

    @property
    def taps(self) -> tuple[str, ...]:
        return ("states",) if self.part == "states" else ("attention",)

    def read(self, at: EncoderReading) -> TowerRows:
        return getattr(at, self.part)(self.layer)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class _Stored(DecoderNeed):
    """The "keys" or "values" of a decoder layer."""

    part: str
    taps = ("attention",)

    def read(self, at: DecoderReading) -> Tensor:
        return getattr(at, self.part)(at.image)  # type: ignore[no-any-return]


class _Onlooker(Method):
    """Keeps the first tokens, and remembers what it was shown."""

    name, stage = "onlooker", "vision"

    def __init__(self, needs: dict[str, Need], layer: int | None = None) -> None:
        self.wanted, self.layer, self.seen = needs, layer, list[ImageView]()

    def needs(self, info: Any) -> dict[str, Need]:
        return self.wanted

    def decoder_layer(self, info: Any) -> int | None:
        return None if self.layer is None else DecoderMethod.decoder_layer(self, info)  # type: ignore[arg-type]

    def select(self, view: ImageView) -> Tensor:
        self.seen.append(view)
        return torch.arange(view.keep)

    def watch(self, model: Any, inputs: dict[str, Any]) -> list[ImageView]:
        with torch.no_grad(), prune(model, Recipe((Stage(self, 0.5),))):
            model(**inputs)
        return self.seen


def expect(what: str, got: Tensor, due: Tensor) -> None:
    """Raise Failed where a signal is not what was computed."""
    if got.shape != due.shape:
        raise Failed(f"expected {what} of shape {list(due.shape)}, but got {list(got.shape)}")
    error, limit = float((got - due).abs().max()), EXACT * max(1.0, float(due.abs().max()))
    if not error <= limit:
        raise Failed(f"expected {what} as the unpruned model computes it, but it differs by {error:.1e}")


@of_adapter(
    "attention, queries, keys, values and states of the encoder are those that it computes, slot by slot",
    after=["declared", "slots"],
)
def encoder_signals(subject: AdapterSubject) -> None:
    family = subject.declared
    if subject.unreadable:
        raise Skipped(f"methods cannot read the encoder: {subject.unreadable}")
    eager = family.build("eager")
    names: list[tuple[EncoderLayer, int]] = [(USED, family.used), (1, 1)]
    for seed in SEEDS:
        layers, _ = tower_layers(eager, family.image(seed)[0])
        for named, number in names:
            expected = Expected(family, seed, layers[number])
            [view] = _Onlooker(_tower_needs(named)).watch(subject.ground.model, prompt(family, [[seed]]))
            where = f"of encoder layer {number % len(layers)} in image {seed}"
            expect(f"the attention received {where}", view["received"], expected.received)
            expect(f"the attention of the CLS token {where}", view["cls"], expected.attended)
            for part in ("queries", "keys", "values"):
                expect(f"the {part} {where}", view[part].rows, expected.heads(part))
            states = expected.mapped(expected.layer.states)
            expect(f"the states {where}", view["states"].rows, states)
            if family.tower_rows and named == USED:
                expect(f"what the projector reads in image {seed}", view["rows"].rows, states)


def _tower_needs(layer: EncoderLayer) -> dict[str, Need]:
    parts = {part: _Tower(part, layer) for part in ("queries", "keys", "values", "states")}
    return {"received": ReceivedAttention(layer), "cls": ClsAttention(layer), "rows": TowerFeatures(), **parts}


@of_adapter("attention, keys, values and states of decoder layers are those computed there", after=["several_images"])
@torch.no_grad()
def decoder_signals(subject: AdapterSubject) -> None:
    needs: dict[str, Need] = {
        "last": LastQueryAttention(), "text": TextQueryAttention(heads="all"), "hidden": HiddenStates(),
        "input": LayerInput(), "output": LayerOutput(), "mlp": MlpInput(),
        "keys": _Stored("keys"), "values": _Stored("values"),
        "final": DecoderStates(), "following": DecoderStates(norm="next"),
    }  # fmt: skip
    adapter, ground = subject.adapter, subject.ground
    model = _eager(subject)
    layers = [layer for layer in adapter.attention_layers if layer + 1 < len(adapter.decoder_layers)]
    kinds = {adapter.layer_kind(layer): layer for layer in reversed(layers)}  # the first of each
    if not kinds:
        raise Skipped("no decoder layer before the last has an attention map")
    for layer in kinds.values():
        own = Layer()
        with (
            watched(adapter_for(model), layer) as seen,
            recording({adapter_for(model).decoder_attention(layer): own}),
        ):
            model(**ground.inputs)
        places = {"final": len(adapter.decoder_layers), "following": layer + 1}
        norms = {name: following(adapter_for(model), at, lambda: model(**ground.inputs)) for name, at in places.items()}
        views = _Onlooker(needs, layer + 1).watch(ground.model, ground.inputs)
        for view, (row, image, text) in zip(views, _columns(subject), strict=True):
            maps, where = seen["maps"][row], f"of decoder layer {layer}"
            expect(f"the attention of the last token {where}", view["last"], maps.mean(0)[-1, image])
            expect(f"the attention of the text {where}", view["text"], maps[:, text][..., image])
            expect(f"the input {where}", view["input"], seen["input"][row, image])
            expect(f"what is returned {where}", view["output"], seen["output"][row, image])
            expect(f"the input of the MLP {where}", view["mlp"], seen["mlp"][row, image])
            expect(f"the output {where} at the image", view["hidden"].visual, seen["next"][row, image])
            expect(f"the output {where} at the text", view["hidden"].text, seen["next"][row, text])
            for name, norm in norms.items():
                expect(f"the output {where} behind a norm", view[name].visual, norm(seen["next"])[row, image])
            for part in ("keys", "values"):
                [attended] = getattr(own, part)
                expect(f"the {part} {where}", view[part], attended[row].transpose(0, 1).flatten(1)[image])


def _eager(subject: AdapterSubject) -> Any:
    """The same model with eager attention, which gives its maps."""
    if subject.family is not None:
        return subject.family.build("eager")
    model = copy.deepcopy(subject.ground.model)
    model.set_attn_implementation("eager")
    return model


def _columns(subject: AdapterSubject) -> Iterator[tuple[int, Tensor, Tensor]]:
    """(row, columns of the image, columns of the text behind it) of each image of the batch."""
    numbers, mask = subject.ground.numbers, subject.ground.inputs["attention_mask"]
    for row in range(len(numbers)):
        text = ((numbers[row] < 0) & (mask[row] == 1)).nonzero().squeeze(1)
        for image in range(len(subject.ground.slots[row])):
            own = (numbers[row] == image).nonzero().squeeze(1)
            yield row, own, text[text > own[-1]]
