"""Checks of an adapter's positions and of the projector: what the runtime computes with the model's own modules."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from vlmprune.models.base import Turned, distance, parts, rounding
from vlmprune.testing.adapter_checks import modalities, of_adapter, singles
from vlmprune.testing.adapter_subject import AdapterSubject, Encoded, embeddings
from vlmprune.testing.check import Failed, Skipped


@of_adapter("the rotary embedding of other position ids is what the model makes of them", after=["parts"])
def positions(subject: AdapterSubject) -> None:
    adapter, given = subject.adapter, _rotaries(subject)
    for layer, (ids, turned) in given.items():
        order = torch.arange(parts(turned)[0].shape[-2]).flip(0)[::2]  # some of them, the last first
        got = parts(adapter.rotary_at(layer, ids[..., order], turned, ids))
        due = [turn[..., order, :] for turn in parts(turned)]
        if not distance(got, due) <= rounding(due[0]):
            raise Failed(
                f"expected the rotary embedding that decoder layer {layer} gets, but `rotary_at` gives another"
            )


@torch.no_grad()
def _rotaries(subject: AdapterSubject) -> dict[int, tuple[Tensor, Turned]]:
    """By decoder layer, position ids of an unpruned forward and the cos and sin that it is given."""
    adapter, model = subject.adapter, subject.ground.model
    ids: list[Tensor | None] = []
    pairs: dict[int, Turned] = {}

    def note_ids(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ids.append(kwargs.get("position_ids"))

    def note_pair(layer: int) -> Any:
        def note(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            pairs[layer] = kwargs["position_embeddings"]

        return note

    handles = [adapter.text_model.register_forward_pre_hook(note_ids, with_kwargs=True)]
    handles += [
        module.register_forward_pre_hook(note_pair(layer), with_kwargs=True)
        for layer, module in enumerate(adapter.decoder_layers)
    ]
    try:
        model(**subject.ground.inputs)
    finally:
        for handle in handles:
            handle.remove()
    given = ids[0]
    if given is None:
        given = torch.arange(parts(next(iter(pairs.values())))[0].shape[-2])[None].to(model.device)
    given = given[1:] if given.ndim == 3 and given.shape[0] == 4 else given  # without the row that counts text
    return {layer: (given, pair) for layer, pair in pairs.items()}


@of_adapter("the projector makes the features of the rows that the adapter names", after=["slots", "declared"])
def projector(subject: AdapterSubject) -> None:
    adapter = subject.adapter
    if not adapter.tower_rows:
        raise Skipped("there is no row for each slot before its projector")
    for what, inputs in singles(subject):
        with subject.encoding() as calls, _states(subject) as states:
            embeddings(adapter, inputs)
        for one in calls:
            _check_projector(one, what, states[one.modality])


@contextmanager
def _states(subject: AdapterSubject) -> Iterator[dict[str, list[Tensor]]]:
    """While the output of the layer that the projector is said to read is noted, by modality."""
    found: dict[str, list[Tensor]] = {}
    with ExitStack() as stack:
        for modality in modalities(subject):
            seen = found[modality] = []
            layer = subject.adapter.encoder_layers(modality)[subject.adapter.used_layer]

            def note(module: Any, args: Any, output: Any, seen: list[Tensor] = seen) -> None:
                seen.append(output[0] if isinstance(output, tuple) else output)

            stack.callback(layer.register_forward_hook(note).remove)
        yield found


@torch.no_grad()
def _check_projector(one: Encoded, what: str, states: Sequence[Tensor]) -> None:
    pieces = one.adapter.features(one.modality, one.call, one.pooled)
    laid = one.adapter.rows(one.modality, one.call, states, [len(features) for features in pieces])
    for features, rows in zip(pieces, laid, strict=True):
        known = ~rows.rows.isnan().any(dim=-1)  # newline and CLS slots have no row
        got, due = one.adapter.project(rows.rows[known]), features[known]
        error = float((got - due).abs().max())
        if not error <= 1e-4 * float(due.abs().max()):
            raise Failed(f"expected the features of {what} from its rows, but they differ by {error:.1e}")
