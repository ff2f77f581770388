"""What tests of methods that act in several decoder layers share: recipes, and layers written out by hand."""

from __future__ import annotations

from typing import Any

import torch
from harness import built, generate
from harness_methods import METHODS, REFUSED, cutting, places
from torch import Tensor

import vlmprune
from vlmprune.core.budget import Keep
from vlmprune.core.method import Method
from vlmprune.core.plan import acts_of
from vlmprune.core.recipe import Recipe, Stage
from vlmprune.core.view import ImageView, ModelInfo, Tokens
from vlmprune.methods.decoder.adaptinfer import AdaptInfer
from vlmprune.methods.decoder.autoprune import AutoPrune
from vlmprune.methods.decoder.fastv import FastV
from vlmprune.methods.decoder.fitprune import FitPrune
from vlmprune.methods.decoder.mustdrop import MustDrop
from vlmprune.methods.decoder.pyramiddrop import PyramidDrop
from vlmprune.methods.decoder.sparsevlm import SparseVLM
from vlmprune.methods.decoder.staged import Staged
from vlmprune.methods.vision.random import Random

LLAVA = ModelInfo("llava", encoder_layers=24, decoder_layers=32, has_cls=True)
HYBRID = ModelInfo("qwen3_5", 24, 32, has_cls=False, attention_layers=tuple(range(3, 32, 4)))
SIX = ["llava", "qwen2_5_vl", "qwen3_vl", "internvl", "gemma3", "qwen3_5"]
# What an option or a budget of its own brings about, beside each method by itself.
VARIANTS: dict[str, Stage] = {
    "pyramiddrop on average": Stage(PyramidDrop(average=True), 0.5),
    "adaptinfer down to nothing": Stage(AdaptInfer(), 32 / 576),
    "sparsevlm+": Stage(SparseVLM(version="+"), 192 / 576),
    "sparsevlm with few": Stage(SparseVLM(), 0.05),
    "sparsevlm 1.0": Stage(SparseVLM(version="1.0"), 64 / 576),
    "mustdrop by thresholds": Stage(MustDrop(global_threshold=0.06, individual_threshold=0.12), 1.0),
    "mustdrop without its cache cut": Stage(MustDrop(kv_prune=False), 9),
    "fitprune of uniprune": Stage(FitPrune(compat="uniprune"), 0.3),
    "autoprune with flash attention": Stage(AutoPrune(flash=True), 0.3),
    "random inside": Stage(Random(layer=2), 0.3),
    "fastv in order of score": Stage(FastV(compat="uniprune"), 0.333),
}
BY_ITSELF = {name: Stage(cutting(name), 0.4) for name in METHODS if places(name, 0.4) != [None]}
ALL = {**BY_ITSELF, **VARIANTS}
DROPPING = [name for name, stage in ALL.items() if not stage.method.merges]
TRIMMING = [name for name, stage in ALL.items() if stage.method.trims_cache]


def cuts(name: str) -> int:
    """How often it acts on LLaVA-1.5."""
    return len(acts_of(ALL[name].method, ALL[name].keep, LLAVA))


def refused(family: str, name: str) -> bool:
    """Whether the method reads attention that some layers of the family do not have."""
    return (ALL[name].method.name, family) in REFUSED


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


QWEN2 = ModelInfo("qwen2_vl", encoder_layers=32, decoder_layers=28, has_cls=False)


def counts_of(method: Method, keep: Keep, total: int, info: ModelInfo = LLAVA) -> list[int]:
    """Tokens kept by each act."""
    left, kept = total, []
    for act in acts_of(method, keep, info):
        left = act.budget(left, total)
        kept.append(left)
    return kept


def layers_of(method: Method, info: ModelInfo = LLAVA, keep: Keep = 0.5) -> list[int | None]:
    return [act.layer for act in acts_of(method, keep, info)]


def shown_inside(
    method: Staged, n: int, keep: int, seed: int, words: int = 5, alike: bool = False
) -> tuple[Any, ImageView]:
    """The first act of a method and an image for it, with random signals."""
    made = torch.Generator().manual_seed(seed)
    tokens = torch.randn(n, 8, generator=made)
    if alike:
        tokens = tokens[torch.randint(max(1, n // 5), (n,), generator=made)]
    text = torch.randn(words, 8, generator=made)
    rows = torch.rand(4, words, n + words, generator=made)
    if alike:
        rows = rows.round()
    rows = rows / rows.sum(-1, keepdim=True).clamp(min=1e-6)
    image, plus = rows[..., :n], getattr(method, "version", None) == "+"
    signals = {
        AdaptInfer: {"image": image, "text": rows[..., n:]},
        PyramidDrop: {"attention": image.mean((0, 1)).nan_to_num()},
        SparseVLM: {
            "image": tokens, "text": text, "attention": image if plus else image.mean(0),
            "states": Tokens(tokens, text), "gain": torch.rand(words, n, generator=made) + 0.1,
        },
    }[type(method)]  # fmt: skip
    return ImageView(keep, torch.arange(n), None, LLAVA, signals, total=n, act=acts_of(method, 0.5, LLAVA)[0])
