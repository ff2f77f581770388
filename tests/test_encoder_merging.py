"""ToMe inside the encoder: its reference is the tower run by hand, token by token as the paper has it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from harness import RAGGED, TOLERANCE, alone, built, generate, inputs_of, largest
from harness_embeddings import assemble, greedy_on_embeddings
from harness_spies import fingerprint, same
from torch import Tensor, nn

import vlmprune
from vlmprune.models import adapter_for
from vlmprune.runtime.encoder_merging import spread_over_layers

PLAIN = ["llava", "llava with SigLIP", "video_llava", "paligemma"]


def tower_by_hand(
    model: Any, pixels: Tensor, keep: int, prop_attn: bool = True, weighted: bool = True
) -> tuple[Tensor, list[list[int]]]:
    """Projected features [keep, D] of one picture, and the patches that each stands for, as the tower returns them."""
    adapter = adapter_for(model)
    tower, cls = model.model.vision_tower, int(adapter.has_cls)
    hidden = tower.embeddings(pixels[None])
    if hasattr(tower, "pre_layrnorm"):
        hidden = tower.pre_layrnorm(hidden)
    hidden = hidden[0]
    members = [[place] for place in range(len(hidden))]
    layers = tower.encoder.layers[: adapter.used_layer + 1]
    for layer, count in zip(layers, spread_over_layers(len(hidden) - cls, keep, len(layers)), strict=True):
        attention, normed = layer.self_attn, layer.layer_norm1(hidden)
        q, k, v = (
            part(normed).unflatten(-1, (attention.num_heads, -1)).transpose(0, 1)
            for part in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        logits = q @ k.mT * attention.scale
        if prop_attn:
            logits = logits + torch.tensor([float(len(group)) for group in members]).log()
        hidden = hidden + attention.out_proj((logits.softmax(-1) @ v).transpose(0, 1).flatten(1))
        hidden, members = merge(hidden, k.mean(0), members, count, cls, weighted)
        hidden = hidden + layer.mlp(layer.layer_norm2(hidden))
    features = adapter.project(hidden[cls:])
    return features, [[place - cls for place in sorted(group)] for group in members[cls:]]


def merge(
    hidden: Tensor, keys: Tensor, members: list[list[int]], count: int, cls: int, weighted: bool
) -> tuple[Tensor, Any]:
    """One bipartite step in plain Python: each even token's best odd partner, the most similar `count` pairs merged."""
    unit = nn.functional.normalize(keys, dim=-1)
    pairs = []
    for a in range(0, len(hidden), 2):
        likeness = [float(unit[a] @ unit[b]) for b in range(1, len(hidden), 2)]
        best = max(range(len(likeness)), key=likeness.__getitem__)
        if not (cls and a == 0):
            pairs.append((likeness[best], a, 2 * best + 1))
    pairs.sort(key=lambda pair: (-pair[0], pair[1]))
    gone = {a: b for _, a, b in pairs[:count]}
    left = [pair[1] for pair in pairs[count:]]
    stay = [0] * cls + (sorted(left) if cls else left) + list(range(1, len(hidden), 2))
    rows, groups = [], []
    for token in stay:
        joined = [token, *(a for a, b in gone.items() if b == token)]
        sizes = torch.tensor([float(len(members[t])) if weighted else 1.0 for t in joined])
        rows.append((hidden[joined] * sizes[:, None]).sum(0) / sizes.sum())
        groups.append([place for t in joined for place in members[t]])
    return torch.stack(rows), groups


@torch.no_grad()
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"prop_attn": False},
        {"weighted": False},
        {"order": "matching"},
        {"order": "matching", "weighted": False, "prop_attn": False},  # LightCompress
    ],
    ids=str,
)
@pytest.mark.parametrize("family", ["llava", "llava with SigLIP"])
def test_equals_the_tower_run_by_hand(family: str, options: dict[str, Any]) -> None:
    model, inputs = built(family), alone(family, RAGGED, 0)
    with vlmprune.prune(model, "tome", keep=14, inside=True, **options) as session:
        tokens, logits = generate(model, inputs)
    by_hand = {name: value for name, value in options.items() if name != "order"}
    images = []
    for number, pixels in enumerate(inputs["pixel_values"]):
        features, groups = tower_by_hand(model, pixels, 14, **by_hand)
        assert session.last.kept[0][number].tolist() == sorted(group[0] for group in groups)
        assert sorted(place for group in groups for place in group) == list(range(36))
        if "order" not in options:
            features = features[sorted(range(14), key=lambda i: groups[i][0])]
        images.append((features, torch.zeros(1, 14).long()))
    embeds, _ = assemble(model, inputs["input_ids"], images, torch.zeros(1, inputs["input_ids"].shape[1]).long())
    counted = torch.arange(embeds.shape[1])[None]
    assert largest(greedy_on_embeddings(model, embeds, counted, tokens[0]), logits[0]) < TOLERANCE


@torch.no_grad()
@pytest.mark.parametrize("family", PLAIN)
def test_modes(family: str) -> None:
    """Batch as alone, eager as sdpa, keep=1.0 bit for bit, another stage behind it, and nothing left behind."""
    model, inputs, spec = built(family), inputs_of(family, RAGGED), "tome(inside=True):0.5 > fastv@2:0.5"
    vanilla = generate(model, inputs)
    generate(model, inputs)
    before = fingerprint(model)
    with vlmprune.prune(model, spec) as session:
        logits, kept = generate(model, inputs)[1], session.last.kept
        one = generate(model, alone(family, RAGGED, 1))[1]
        assert largest(one[0], logits[1]) < TOLERANCE
        assert [after for _, after in session.last.tokens] == [sum(len(image) for image in kept[1])]
    assert same(before, fingerprint(model))
    with vlmprune.prune(built(family, "eager"), spec):
        assert largest(generate(built(family, "eager"), inputs)[1], logits) < TOLERANCE
    with vlmprune.prune(model, "tome(inside=True):1.0"):
        assert torch.equal(generate(model, inputs)[1], vanilla[1])


def test_undone_after_an_exception() -> None:
    model, inputs = built("llava"), inputs_of("llava", RAGGED)
    generate(model, inputs)
    before = fingerprint(model)
    broken = copy.copy(inputs)
    broken["pixel_values"] = torch.zeros(3, 2, 24, 24)
    with vlmprune.prune(model, "tome(inside=True):0.5"), pytest.raises(RuntimeError):
        model(**broken)
    assert same(before, fingerprint(model))


@pytest.mark.parametrize("family", ["qwen2_5_vl", "llava_next", "internvl", "gemma3", "smolvlm", "video_llava video"])
def test_other_towers_are_refused_in_words(family: str) -> None:
    model, inputs = built(family), inputs_of(family, RAGGED)
    with pytest.raises(vlmprune.UserError, match="one slot for each"), vlmprune.prune(model, "tome(inside=True):0.5"):
        model(**inputs)


def test_what_reads_the_encoder_cannot_follow() -> None:
    model, inputs = built("llava"), inputs_of("llava", RAGGED)
    with (
        vlmprune.prune(model, "tome(inside=True):0.5 > hiprune:0.5"),
        pytest.raises(vlmprune.UserError, match="cannot follow"),
    ):
        model(**inputs)
    with vlmprune.prune(model, "tome(inside=True):0.5 > divprune:0.5") as session, torch.no_grad():
        model(**inputs)
    assert session.last.tokens == [(72, 18), (36, 9)]
    encoded = vlmprune.encode_images(model, inputs, ["divprune"])
    with (
        vlmprune.prune(model, "tome(inside=True):0.5"),
        pytest.raises(vlmprune.UserError, match="inside the encoder"),
    ):
        model(**encoded.inputs())


def test_counts_are_spread_over_the_layers() -> None:
    assert spread_over_layers(576, 64, 23) == [23] * 6 + [22] * 17
    assert spread_over_layers(576, 208, 23) == [16] * 23  # the preset of LightCompress
    assert spread_over_layers(36, 3, 4) == [12, 12, 6, 3]  # 9 at first would be even, and too few to halve down to 3
    assert spread_over_layers(36, 35, 4) == [1, 0, 0, 0]
    with pytest.raises(vlmprune.UserError, match="cannot be merged down to 1"):
        spread_over_layers(36, 1, 4)
