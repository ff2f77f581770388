"""How much attention visual tokens get in each decoder layer of one prefill, pruned or not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import torch
from torch import Tensor

import vlmprune
from vlmprune.core.errors import UserError
from vlmprune.core.fusion import Fusion, layers_before
from vlmprune.core.recipe import Recipe
from vlmprune.models import adapter_for
from vlmprune.models.base import Adapter
from vlmprune.runtime.taps import AttentionCall, capture
from vlmprune.scores import attention_rows, fused_attention
from vlmprune.scores.fusion import Rows


class Sight(NamedTuple):
    """One decoder layer, mean over heads and over the text tokens behind the image.

    Attributes:
        visual: share of these tokens' attention that goes to visual tokens.
        tokens: share of the tokens of the layer that are visual.
        gathered: share of attention that goes to the candidates of Prune-Aware Fusion, which are dropped before a later
            layer; None where the layer has none.
    """

    visual: float
    tokens: float
    gathered: float | None


@torch.no_grad()
def sights(
    model: Any, inputs: dict[str, Any], recipe: Recipe | None = None, candidates: dict[int, Tensor] | None = None
) -> tuple[dict[int, Sight], dict[int, Tensor]]:
    """By decoder layer with an attention map, what it sees; and by layer the candidates of fusion, as prompt columns.

    Args:
        inputs: of one prompt with one image.
        recipe: by which the prefill is pruned, None for the whole prompt.
        candidates: of another run, to ask for the attention to them in a run without fusion.

    Raises:
        UserError: attention of a layer cannot be read as this asks, or the recipe cannot act on the model.
    """
    adapter = adapter_for(model)
    layers = adapter.attention_layers
    modules = [adapter.decoder_attention(layer) for layer in layers]
    ids = inputs["input_ids"][0].cpu()
    visual = torch.isin(ids, torch.tensor(list(adapter.placeholder_ids.values())))
    image = visual.nonzero().squeeze(1)
    text = torch.arange(int(image.max()) + 1, len(ids))
    columns = dict.fromkeys(layers, torch.arange(len(ids)))
    found = dict(candidates or {})
    with capture(modules) as calls:
        if recipe is None:
            model(**inputs)
        else:
            with vlmprune.prune(model, recipe) as session:
                model(**inputs)
                columns = {layer: session.last.columns_of(layer)[0].cpu() for layer in layers}
                for cut, kept in session.last.gathered.items():
                    found |= {layer: image[kept[0][0].cpu()] for layer in layers_before(cut)}
    fusions = _fusions(adapter, recipe)
    seen = {}
    for layer, module in zip(layers, modules, strict=True):
        [call] = calls[module]
        _check(adapter, call, layer, len(columns[layer]))
        place = torch.full((len(ids),), -1)  # where a token of the prompt stands in this layer
        place[columns[layer]] = torch.arange(len(columns[layer]))
        present = visual & (place >= 0)
        sets = [place[present], *([place[found[layer]]] if layer in found else [])]
        shares = _shares(call, place[text], sets, fusions.get(layer))
        tokens = float(present.sum()) / len(columns[layer])
        seen[layer] = Sight(shares[0], tokens, shares[1] if layer in found else None)
    return seen, found


def _fusions(adapter: Adapter, recipe: Recipe | None) -> dict[int, Fusion]:
    acts = () if recipe is None else recipe.on(adapter.info).acts
    found: dict[int, Fusion] = {}
    for act in acts:
        if act.fusion is not None and act.layer is not None:
            found |= dict.fromkeys(layers_before(act.layer), act.fusion)
    return found


def _check(adapter: Adapter, call: AttentionCall, layer: int, tokens: int) -> None:
    """Raise UserError if a layer saw other tokens than these, or hid keys by a window that its call does not show."""
    if call.key.shape[2] != tokens:
        raise UserError(
            f"Decoder layer {layer} saw {call.key.shape[2]} tokens where {tokens} were expected: its attention cannot "
            "be laid over the prompt."
        )
    window = getattr(adapter.text_config, "sliding_window", None)
    if call.mask is None and adapter.layer_kind(layer) == "sliding_attention" and call.key.shape[2] > (window or 0):
        raise UserError(
            f"Decoder layer {layer} attends within a window that its kernel does not show: load the model with "
            "attn_implementation='sdpa'."
        )


def _visible(call: AttentionCall, queries: Tensor) -> Tensor:
    """[R, S] what the queries see."""
    if call.mask is not None:
        return call.mask[0, 0][queries, : call.key.shape[2]]
    every = torch.arange(call.key.shape[2], device=queries.device)
    return (
        every <= queries[:, None] if call.causal else torch.ones_like(every, dtype=torch.bool).expand(len(queries), -1)
    )


def _shares(call: AttentionCall, queries: Tensor, sets: Sequence[Tensor], fusion: Fusion | None) -> list[float]:
    """For each set of keys the share of attention that these queries pay to it, as the layer computed it.

    Args:
        sets: the visual tokens, and the candidates of fusion where there are any.
    """
    device = call.query.device
    queries, sets = queries.to(device), [of.to(device) for of in sets]
    visible, query = _visible(call, queries), call.query[:, :, queries]
    rows = attention_rows(query, call.key, call.scaling, visible[None], "all", call.softcap, call.sinks)[0]
    plain = [rows[:, :, of].sum(-1) for of in sets]  # [H, R]
    if fusion is None or len(sets) < 2 or not len(sets[1]):
        return [float(share.mean()) for share in plain]
    # Attention to a set of keys is what attention gives for values that are 1 there and 0 elsewhere.
    shares = []
    for of, share in zip(sets, plain, strict=True):
        value = torch.zeros(*call.key.shape[1:3], 1, device=device)
        value[:, of] = 1
        given = Rows(query[0], call.key[0], value, call.scaling, visible, call.softcap, call.sinks)
        edited, _ = fused_attention(share.T[..., None], given, [sets[1]], **asdict(fusion))
        shares.append(float(edited.mean()))
    return shares


def per_layer(found: Sequence[dict[int, Sight]], name: str) -> dict[int, list[float]]:
    """A field of each layer, over prompts; layers without it are left out."""
    layers = sorted({layer for one in found for layer in one})
    values = {layer: [getattr(one[layer], name) for one in found] for layer in layers}
    return {layer: of_layer for layer, of_layer in values.items() if None not in of_layer}
