"""Checks of what an adapter says of a model: its parts, its slots and its positions. Nothing is pruned here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vlmprune.core.errors import UserError
from vlmprune.models.base import within_rounding
from vlmprune.runtime.oracle import is_recurrent
from vlmprune.runtime.session import prune
from vlmprune.runtime.vision import current_names
from vlmprune.testing.adapter_subject import AdapterSubject, Encoded, embeddings
from vlmprune.testing.check import ADAPTER_CHECKS, Failed, Registered, check
from vlmprune.testing.family import SEEDS, prompt

of_adapter: Callable[..., Registered] = partial(check, into=ADAPTER_CHECKS)


@of_adapter(
    "the model gets this adapter, which names all its encoder and decoder layers, in the order in which they run"
)
def parts(subject: AdapterSubject) -> None:
    adapter, model = subject.adapter, subject.ground.model
    layers = {f"{kind} layers": adapter.encoder_layers(kind) for kind in modalities(subject)}
    layers["decoder layers"] = adapter.decoder_layers
    attentions = [*(module for kind in modalities(subject) for module in adapter.encoder_attentions(kind))]
    attentions += [adapter.decoder_attention(layer) for layer in adapter.attention_layers]
    named = [layer for group in layers.values() for layer in group]
    classes = {type(layer) for layer in named}
    ran = _order(
        model, {*named, *attentions, *(m for m in model.modules() if type(m) in classes)}, subject.ground.inputs
    )
    for what, group in layers.items():
        if [layer for layer in ran if layer in set(group)] != list(group):
            raise Failed(f"expected that the {len(group)} {what} named run, in this order, but not all of them do")
    places = {module: name for name, module in model.named_modules()}
    for layer in ran:
        if type(layer) in classes and layer not in set(named):
            raise Failed(f"expected that all layers are named, but {places[layer]} runs and is not among them")
    for module in attentions:
        if module not in ran or not any(module in set(layer.modules()) for layer in named):
            raise Failed(f"expected the attention of a layer that runs, but {places.get(module, module)} is none")


def modalities(subject: AdapterSubject) -> list[str]:
    """What the prompts show: "image", "video" or both."""
    named = current_names(subject.adapter, subject.ground.inputs)
    return [kind for kind in subject.adapter.feature_functions if subject.adapter.pixels[kind] in named]


@torch.no_grad()
def _order(model: Any, modules: set[nn.Module], inputs: dict[str, Any]) -> list[nn.Module]:
    """Those of the modules that run in a forward, in the order in which they first do."""
    ran: dict[nn.Module, None] = {}
    handles = [module.register_forward_pre_hook(lambda one, args: ran.setdefault(one)) for module in modules]
    try:
        model(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    return list(ran)


@of_adapter("what is declared beside the tiny model is what the adapter says", after=["parts"])
def declared(subject: AdapterSubject) -> None:
    family, adapter = subject.declared, subject.adapter
    depth = len(adapter.encoder_layers(modalities(subject)[0]))
    said = {
        "name": (family.name, adapter.config.model_type),
        "cls": (family.cls, adapter.has_cls),
        "cls_last": (family.cls_last, adapter.cls_last),
        "used": (range(depth)[family.used] if depth else -1, adapter.used_layer),
        "tower_rows": (family.tower_rows, adapter.tower_rows),
        "window": (family.window > 0, adapter.full_layers is not None),
        "recurrent": (family.recurrent, is_recurrent(adapter.model)),
    }
    for name, (due, got) in said.items():
        if due != got:
            raise Failed(
                f"expected {due!r}, as {name}={getattr(family, name)!r} is declared, but the adapter says {got!r}"
            )


@of_adapter("the slots of an image are its features, as many and in the same order", after=["parts"])
def slots(subject: AdapterSubject) -> None:
    for what, inputs in singles(subject):
        _check_slots(subject, what, inputs)


def singles(subject: AdapterSubject) -> Iterator[tuple[str, dict[str, Any]]]:
    """Prompts with one image each."""
    if subject.family is None:
        yield "the sample picture", subject.ground.rows[0]
        return
    for seed in SEEDS:
        yield f"image {seed}", prompt(subject.family, [[seed]])


def _check_slots(subject: AdapterSubject, what: str, inputs: dict[str, Any]) -> None:
    adapter = subject.adapter
    with subject.encoding() as calls:
        embeds = embeddings(adapter, inputs)[0]
    ids, pieces = inputs["input_ids"][0], 0
    for token in set(adapter.placeholder_ids.values()):  # images and videos may share one
        columns = (ids == token).nonzero().squeeze(1)
        own = [one for one in calls if adapter.placeholder_ids[one.modality] == token]
        rows = [piece for one in own for piece in _pieces(one, what)]
        count = sum(map(len, rows))
        if count != len(columns):
            raise Failed(f"expected features for the {len(columns)} slots of {what}, but there are {count}")
        pieces += len(rows)
        if rows and not _arrive(adapter, torch.cat(rows), embeds[columns]):
            raise Failed(f"expected the features of {what} at its slots in their order, but other values stand there")
    if not pieces:
        raise Failed(
            f"expected that {what} is encoded by {' or '.join(adapter.feature_functions.values())}, but it is not"
        )


def _pieces(one: Encoded, what: str) -> list[Tensor]:
    """The features of each piece, for which there must be as many slots."""
    pieces = one.adapter.features(one.modality, one.call, one.pooled)
    places = one.adapter.slots(one.modality, one.call, [len(piece) for piece in pieces])
    if [len(piece) for piece in pieces] != [len(place.cells) for place in places]:
        due, got = [len(piece) for piece in pieces], [len(place.cells) for place in places]
        raise Failed(f"expected cells for {due} slots in the pieces of {what}, but `slots` gives {got}")
    return pieces


def _arrive(adapter: Any, features: Tensor, embeds: Tensor) -> bool:
    """Whether features enter the language model as the adapter says."""
    try:
        added = adapter.entering(features, embeds)
    except UserError:
        return False
    return within_rounding(features.to(embeds) + (0 if added is None else added), embeds)


@of_adapter("the slot grid has the shape of the picture, and each slot shows the cell of its patches", after=["slots"])
def grid(subject: AdapterSubject) -> None:
    family = subject.declared
    for seed in SEEDS:
        due, allowed = family.slot_grid(seed)
        with torch.no_grad(), prune(subject.ground.model, "random:1.0") as session:
            subject.ground.model(**prompt(family, [[seed]]))
        [grids], [cells] = session.last.grids, session.last.cells
        if list(grids) != [due]:
            raise Failed(f"expected one image {_size(due)} in image {seed}, but got {' and '.join(map(_size, grids))}")
        for slot, (cell, those) in enumerate(zip(cells[0].tolist(), allowed, strict=True)):
            if cell not in those:
                raise Failed(
                    f"expected slot {slot} of image {seed} to show cell {sorted(those)[0]}, but it shows {cell}"
                )


def _size(found: Any) -> str:
    return "without a grid" if found is None else f"of {found.rows} x {found.cols} cells in {found.frames} frames"
