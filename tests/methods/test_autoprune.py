"""AutoPrune."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from harness import (
    RAGGED,
    STEPS,
    TOLERANCE,
    alone,
    built,
    inputs_of,
    largest,
)
from harness_staged import LLAVA, merge_by_loops, plain_layer, run_on
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vlmprune.core.errors import UserError
from vlmprune.core.plan import acts_of
from vlmprune.core.recipe import Recipe, Stage
from vlmprune.core.view import ImageView, Merged, ModelInfo, Tokens
from vlmprune.methods.decoder.autoprune import AutoPrune
from vlmprune.methods.decoder.autoprune_curve import keep_shares, mutual_information, simulated

QWEN = ModelInfo("qwen2_5_vl", encoder_layers=32, decoder_layers=28, has_cls=False)


def encoder_rows(model: Any, pixels: Tensor) -> Tensor:
    """[images, n] what the CLS token attends to in the layer whose output is projected, mean over heads."""
    tower = model.model.vision_tower
    layer, states = tower.encoder.layers[-2], tower(pixels, output_hidden_states=True).hidden_states[-3]
    query, key = (
        projection(layer.layer_norm1(states)).unflatten(-1, (layer.self_attn.num_heads, -1)).transpose(1, 2)
        for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj)
    )
    return (query @ key.mT * layer.self_attn.head_dim**-0.5).softmax(-1).mean(1)[:, 0, 1:]


def bits(rows: Tensor) -> float:
    """Sum over heads of the mutual information, one pair of tokens at a time: rows [H, T, n]."""
    heads, words, n = rows.shape
    total = 0.0
    for h in range(heads):
        seen = [sum(float(rows[h, t, v]) for t in range(words)) / words for v in range(n)]
        for t in range(words):
            for v in range(n):
                joint = float(rows[h, t, v]) / words
                total += joint * math.log2(max(joint / (seen[v] / words + 1e-6), 1e-6))
    return total


def auto_reference(
    model: Any, embeds: Tensor, image: Tensor, new: Tensor, cls: Tensor, target: int
) -> tuple[Tensor, int]:
    """Hidden states after the last layer, and how many clusters were made: every layer in plain torch, then the rule on
    one image after another."""
    hidden, depth = torch.cat([embeds, new]), len(model.model.language_model.layers)
    asked = torch.arange(len(hidden)) < len(embeds)
    image = torch.cat([image, torch.full((len(new),), -1)])
    curves: dict[int, list[int]] = {}
    clusters = 0
    for number, layer in enumerate(model.model.language_model.layers):
        hidden, maps = plain_layer(model, layer, hidden)
        if number == depth - 1:
            break
        pieces, owners, questions, at = [], [], [], 0
        for which in range(int(image.max()) + 1):
            own = (image == which).nonzero().squeeze(1)
            words = (asked & (image < 0)).nonzero().squeeze(1)
            rows = maps[:, words[words > own[-1]]][..., own]
            relation, n = rows.mean((0, 1)), len(own)
            if number == 0:
                score = 0.3 * bits(rows) / rows.shape[1] * relation + cls[which]
                kept, made = score.argsort(descending=True)[: min(int(2.5 * target), n)].sort().values, hidden[:0]
            else:
                if number == 1:
                    shares = keep_shares(max(0.0, 0.4 - 0.2 * bits(rows)), target, n, 36, depth)
                    curves[which] = [math.ceil((n - 1) * share) for share in shares]
                order = relation.argsort(descending=True)
                kept, others = order[: curves[which][number - 1]].sort().values, order[curves[which][number - 1] :]
                best = others[: int(0.3 * len(others)) + 1]
                made = merge_by_loops(hidden[own[best]], len(best) // 10 + 1) if len(best) else hidden[:0]
            count, clusters = len(kept) + len(made), clusters + len(made)
            pieces += [hidden[at : own[0]], hidden[own[kept]], made]
            owners += [image[at : own[0]], torch.full((count,), which)]
            questions += [asked[at : own[0]], torch.ones(count, dtype=torch.bool)]
            at = int(own[-1]) + 1
        hidden = torch.cat([*pieces, hidden[at:]])
        image, asked = torch.cat([*owners, image[at:]]), torch.cat([*questions, asked[at:]])
    return hidden, clusters


@torch.no_grad()
@pytest.mark.parametrize("keep", [4, 0.36])
def test_autoprune_equals_a_reference_without_cache_layer_by_layer(keep: int | float) -> None:
    model = built("llava")
    tokens, logits, report = run_on("llava", Recipe((Stage(AutoPrune(), keep),)), inputs_of("llava", RAGGED))
    target = keep if isinstance(keep, int) else round(36 * keep)
    assert [layer for layer, _ in report.stages] == [1, 2, 3]
    for row in range(len(RAGGED)):
        inputs = alone("llava", RAGGED, row)
        features = model.model.get_image_features(inputs["pixel_values"]).pooler_output
        embeds, ids = model.get_input_embeddings()(inputs["input_ids"][0]), inputs["input_ids"][0]
        image = torch.full((len(embeds),), -1)
        image[ids == 90] = torch.arange(len(features)).repeat_interleave(36)
        embeds[ids == 90] = torch.cat(list(features))
        cls = encoder_rows(model, inputs["pixel_values"])
        for step in (0, STEPS - 1):
            new = model.get_input_embeddings()(tokens[row, :step])
            hidden, clusters = auto_reference(model, embeds, image, new, cls, target)
            assert clusters >= 2 * len(features)  # after layers 1 and 2
            got = model.lm_head(model.model.language_model.norm(hidden))[-1]
            assert largest(got, logits[row, step]) < TOLERANCE


def test_autoprune_needs_attention_everywhere() -> None:
    with pytest.raises(UserError, match="reads attention at every decoder layer"):
        run_on("qwen3_5", Recipe((Stage(AutoPrune(), 0.3),)), inputs_of("qwen3_5", RAGGED))
    with pytest.raises(UserError, match="per='frame' must be"):
        AutoPrune(per="frame")


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 40), st.integers(8, 600), st.floats(0.02, 0.9), st.floats(0.0, 0.4))
def test_the_curve_meets_its_target_on_average(depth: int, n: int, keep: float, steepness: float) -> None:
    target = max(1, round(keep * n))
    first = min(int(2.5 * target), n)
    shares = keep_shares(steepness, target, first, n, depth)
    assert len(shares) == depth - 1
    assert all(a >= b - 1e-12 for a, b in pairwise(shares))
    least = simulated([1e-9] * (depth - 1), first, n) / depth  # one token a layer and what is recycled
    at = [layer * max(1.0, 32 / depth) - 14.9 - steepness for layer in range(1, depth)]
    most = simulated([20 * 0.75 / (1 + math.exp(steepness * x)) for x in at], first, n) / depth
    got = simulated(shares, first, n) / depth
    if least <= target <= most:
        assert abs(got - target) <= 1  # half a token where the curve is flat, and all layers move at once


@pytest.mark.parametrize(("depth", "target", "first"), [(12, 4, 10), (12, 5, 12), (8, 4, 10)])
def test_a_curve_that_misses_its_target_by_one_token_is_scaled(depth: int, target: int, first: int) -> None:
    base = [0.75 / (1 + math.exp(0.05 * (layer - 14.9 - 0.05))) for layer in range(1, depth)]
    counts = [int(first * share) for share in base]
    assert abs(sum(counts) + counts[-1] - depth * target) == 1
    shares = keep_shares(0.05, target, first, 576, depth, 14.9)
    assert simulated(shares, first, 576) == depth * target != simulated(base, first, 576)


@pytest.mark.parametrize(
    ("depth", "x0", "middle", "stretch"), [(16, None, 14.9, 2.0), (40, None, 14.9, 1.0), (16, 6.0, 6.0, 1.0)]
)
def test_the_curve_falls_at_the_same_share_of_the_depth(
    depth: int, x0: float | None, middle: float, stretch: float
) -> None:
    steepness = 0.3
    shares = keep_shares(steepness, 100, 250, 576, depth, x0)
    for layer in (2, depth - 1):
        falls = [1 + math.exp(steepness * (at * stretch - middle - steepness)) for at in (1, layer)]
        assert shares[layer - 1] / shares[0] == pytest.approx(falls[0] / falls[1])


def read_by_autoprune(info: ModelInfo, n: int = 9) -> ImageView:
    made = torch.Generator().manual_seed(3)
    rows, cls, last = torch.rand(4, 5, n, generator=made), torch.rand(n, generator=made), torch.rand(n, generator=made)
    return ImageView(4, torch.arange(n), None, info, {"text": rows / n, "cls": cls, "last": last})


@pytest.mark.parametrize("flash", [False, True])
@pytest.mark.parametrize("info", [LLAVA, QWEN], ids=["llava", "qwen"])
def test_the_first_score_of_autoprune(info: ModelInfo, flash: bool) -> None:
    """Attention to the image, weighted by information, beside the encoder's, whose sum is 1 where there is no CLS."""
    view, method = read_by_autoprune(info), AutoPrune(flash=flash, lam=0.7)
    cls = view["cls"] if info is LLAVA else view["cls"] / view["cls"].sum()
    relation = view["last"] if flash else view["text"].mean((0, 1))
    expected = 0.7 * bits(view["text"]) / 5 * relation + cls
    assert torch.allclose(method.first_score(view), expected, atol=1e-5)
    blind = AutoPrune(flash=True, mi_rows="none")
    assert torch.allclose(blind.first_score(view), cls)


def test_information_of_other_numbers_of_heads_is_that_of_the_authors_32() -> None:
    view = read_by_autoprune(LLAVA)
    summed, mean_of_32 = (AutoPrune(mi_reduce=how).information(view) for how in ("sum", "mean"))
    assert summed == pytest.approx(bits(view["text"]), abs=1e-4) and mean_of_32 == pytest.approx(8 * summed)


def test_information_is_none_where_every_word_looks_the_same_way_and_all_where_each_has_its_own() -> None:
    same = torch.full((2, 4, 8), 1 / 8)
    assert mutual_information(same).abs().max() < 1e-3
    own = torch.eye(4)[None]
    assert abs(float(mutual_information(own)) - 2) < 1e-3  # bits of four words
    assert mutual_information(torch.zeros(3, 0, 5)).tolist() == [0, 0, 0]


def test_one_row_tells_nothing_so_flash_reads_the_text_or_takes_none() -> None:
    assert set(acts_of(AutoPrune(flash=True), 0.3, LLAVA)[0].needs) == {"cls", "last", "text"}
    blind = acts_of(AutoPrune(flash=True, mi_rows="none"), 0.3, LLAVA)
    assert set(blind[0].needs) == {"cls", "last"} and set(blind[1].needs) == {"states", "last"}
    assert set(acts_of(AutoPrune(), 0.3, LLAVA)[2].needs) == {"states", "text"}


def test_merged_tokens_of_autoprune_stand_behind_the_kept_ones() -> None:
    made = torch.Generator().manual_seed(0)
    n, acts, memory = 60, acts_of(AutoPrune(), 0.3, LLAVA), {}
    states = Tokens(torch.randn(n, 6, generator=made), torch.zeros(1, 6))
    rows = torch.rand(2, 5, n, generator=made).softmax(-1)
    view = ImageView(18, torch.arange(n), None, LLAVA, {"text": rows, "states": states}, total=n, memory=memory)
    merged = AutoPrune().select(replace(view, act=acts[1]))
    assert isinstance(merged, Merged) and merged.unchanged is not None
    kept = int(merged.unchanged.sum())
    assert merged.unchanged[:kept].all() and not merged.unchanged[kept:].any()
    assert len(merged.anchors.unique()) == len(merged.anchors) and merged.anchors[:kept].tolist() == sorted(
        merged.anchors[:kept].tolist()
    )
    assert kept == max(1, memory["counts"][0])
