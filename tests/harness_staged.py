"""What tests of methods that act in several decoder layers share: recipes, and layers written out by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from harness import built, generate
from torch import Tensor

import vlmprune
from vlmprune.core.recipe import Recipe, Stage
from vlmprune.core.view import ModelInfo
from vlmprune.methods.decoder.adaptinfer import AdaptInfer
from vlmprune.methods.decoder.pyramiddrop import PyramidDrop
from vlmprune.methods.decoder.sparsevlm import SparseVLM
from vlmprune.methods.decoder.vtw import VTW
from vlmprune.models import adapter_for

GOLDENS = Path(__file__).parent / "goldens"
LLAVA = ModelInfo("llava", encoder_layers=24, decoder_layers=32, has_cls=True)
HYBRID = ModelInfo("qwen3_5", 24, 32, has_cls=False, attention_layers=tuple(range(3, 32, 4)))
SIX = ["llava", "qwen2_5_vl", "qwen3_vl", "internvl", "gemma3", "qwen3_5"]
DROPPING: dict[str, Stage] = {
    "pyramiddrop": Stage(PyramidDrop(), 0.5),
    "pyramiddrop on average": Stage(PyramidDrop(average=True), 0.5),
    "adaptinfer": Stage(AdaptInfer(), 0.3),
    "adaptinfer down to nothing": Stage(AdaptInfer(), 32 / 576),
    "sparsevlm+": Stage(SparseVLM(version="+"), 192 / 576),
    "vtw": Stage(VTW(), 0.5),
}
MERGING: dict[str, Stage] = {
    "sparsevlm": Stage(SparseVLM(), 192 / 576),
    "sparsevlm with few": Stage(SparseVLM(), 0.05),
    "sparsevlm 1.0": Stage(SparseVLM(version="1.0"), 64 / 576),
}
ALL = {**DROPPING, **MERGING}


def policies_of(recipe: Recipe, family: str) -> dict[int, str]:
    """Position policy by layer."""
    info = adapter_for(built(family)).info
    return {act.layer or 0: act.positions for act in recipe.on(info).acts}


def run_on(family: str, recipe: Recipe, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor, Any]:
    with vlmprune.prune(built(family), recipe) as session:
        return *generate(built(family), inputs), session.last


def plain_layer(model: Any, layer: Any, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """A Llama layer at positions 0, 1, ..., and its attention maps [H, S, S]."""
    size, attention, x = len(hidden), layer.self_attn, layer.input_layernorm(hidden)
    query, key, value = (
        projection(x).unflatten(-1, (-1, attention.head_dim)).transpose(0, 1)
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    angle = torch.arange(size)[:, None] * model.model.language_model.rotary_emb.inv_freq
    cos, sin = angle.cos().repeat(1, 2), angle.sin().repeat(1, 2)

    def turned(states: Tensor) -> Tensor:
        first, second = states.chunk(2, dim=-1)
        return states * cos + torch.cat([-second, first], dim=-1) * sin

    groups = len(query) // len(key)
    query, key, value = turned(query), turned(key).repeat_interleave(groups, 0), value.repeat_interleave(groups, 0)
    logits = query @ key.mT * attention.head_dim**-0.5
    maps = logits.masked_fill(torch.ones(size, size).triu(1).bool(), float("-inf")).softmax(-1)
    hidden = hidden + attention.o_proj((maps @ value).transpose(0, 1).flatten(1))
    return hidden + layer.mlp(layer.post_attention_layernorm(hidden)), maps


def merge_by_loops(tokens: Tensor, count: int) -> Tensor:
    """The mean of each cluster."""
    return clusters_by_loops(tokens, count)[0]


def clusters_by_loops(tokens: Tensor, count: int) -> tuple[Tensor, list[int]]:
    """DPC-kNN, one token at a time: the mean of each cluster and the token in its middle."""
    n, width = tokens.shape
    distance = [[float((a - b).norm()) / width**0.5 for b in tokens] for a in tokens]
    density = [-sum(d * d for d in sorted(row)[:count]) / count for row in distance]
    prominence = []
    for i in range(n):
        denser = [distance[i][j] for j in range(n) if density[j] > density[i] or (density[j] == density[i] and j < i)]
        furthest = max(max(row) for row in distance)
        prominence.append(torch.tensor(density[i]).exp() * min(denser, default=furthest))
    centres = sorted(range(n), key=lambda i: (-float(prominence[i]), i))[:count]
    groups: list[list[Tensor]] = [[] for _ in centres]
    for i in range(n):
        near = centres.index(i) if i in centres else min(range(count), key=lambda c: distance[i][centres[c]])
        groups[near].append(tokens[i])
    return torch.stack([torch.stack(group).mean(0) for group in groups]), centres
