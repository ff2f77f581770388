"""SparseVLM."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from harness import RAGGED, STEPS, TOLERANCE, alone, built, inputs_of, largest
from harness_staged import (
    LLAVA,
    counts_of,
    layers_of,
    merge_by_loops,
    plain_layer,
    run_on,
    shown_inside,
)
from torch import Tensor

from vlmprune.core.act import Act
from vlmprune.core.budget import Keep
from vlmprune.core.plan import acts_of
from vlmprune.core.recipe import Recipe, Stage
from vlmprune.core.view import ImageView, Tokens
from vlmprune.methods.decoder.sparsevlm import SparseVLM
from vlmprune.methods.decoder.staged import interpolate
from vlmprune.models import adapter_for


def logged(version: str, keep: Keep) -> float:
    """Mean number of tokens that leave a layer of LLaVA-1.5-7B, recycled ones included."""
    sizes, n = [], 576
    for k in counts_of(SparseVLM(version=version), keep, 576):
        n = k if version == "+" else k + (int(0.3 * (n - k)) + 1) // 10 + 1
        sizes.append(n)
    return (2 * 576 + 4 * sizes[0] + 9 * sizes[1] + 17 * sizes[2]) / 32


@pytest.mark.parametrize(
    ("budget", "kept", "plus", "average", "average_plus"),
    [
        (192, [300, 200, 110], [300, 200, 118], 192.0, 192.4),
        (128, [303, 110, 36], [238, 108, 60], 128.6, 128.0),
        (96, [238, 48, 26], [246, 54, 28], 96.9, 96.8),
        (64, [66, 30, 17], [66, 34, 20], 64.8, 64.4),
    ],
)
def test_sparsevlm_has_the_papers_lists(
    budget: int, kept: list[int], plus: list[int], average: float, average_plus: float
) -> None:
    for keep in (budget, budget / 576, round(budget / 576, 3)):
        assert counts_of(SparseVLM(), keep, 576) == kept
        assert counts_of(SparseVLM(version="+"), keep, 576) == plus
        assert logged("1.5", keep) == pytest.approx(average, abs=0.1)
        assert logged("+", keep) == pytest.approx(average_plus, abs=0.1)
    assert layers_of(SparseVLM()) == [3, 7, 16] and layers_of(SparseVLM(version="1.0")) == [3, 7, 16, 20]
    assert counts_of(SparseVLM(), budget / 576, 1152) == [2 * k for k in kept]


def test_interpolation_meets_the_table_and_lies_between() -> None:
    table = {64: (66.0, 17.0), 128: (300.0, 36.0)}
    assert interpolate(table, 64 / 576, 576) == (66, 17) == interpolate(table, 0.111, 576)
    assert interpolate(table, 96 / 576, 576) == (183, 26.5)
    assert interpolate(table, 32 / 576, 576) == (33, 8.5)
    assert interpolate(table, 1.0, 576) == (576, 576)


def test_raters_are_the_words_that_match() -> None:
    image, words = torch.eye(4)[:2] * 10, torch.eye(4)[[0, 2, 3]] * 10
    view = shown_inside(SparseVLM(), 2, 1, seed=0, words=3)
    view = ImageView(1, view.slots, None, LLAVA, {**view.signals, "image": image, "text": words})
    assert SparseVLM().raters(view).tolist() == [True, False, False]
    alone = ImageView(1, view.slots, None, LLAVA, {**view.signals, "image": image, "text": words[:1]})
    assert SparseVLM().raters(alone).tolist() == [True]  # nothing exceeds the mean of one


def test_gravity_eps_keeps_gains_from_turning_the_order() -> None:
    view = shown_inside(SparseVLM(version="+"), 6, 2, seed=1)
    view.signals["gain"][:, 0] = -1e-3  # type: ignore[index]
    view.signals["attention"][..., 0] = 0.9  # type: ignore[index]
    assert 0 not in SparseVLM(version="+").select(view)
    assert 0 in SparseVLM(version="+", gravity_eps=0.01).select(view)


def test_version_one_keeps_by_rank() -> None:
    method = SparseVLM(version="1.0")
    view = shown_inside(method, 40, 39, seed=2, words=6)
    rank = int(method.raters(view).sum())
    for keep, scale, bias in ((64 / 576, 0.8, 0), (128 / 576, 9, 6), (192 / 576, 13.5, 0), (96 / 576, 4.9, 3)):
        view = replace(view, act=acts_of(method, keep, LLAVA)[0])
        chosen = method.select(view)
        assert int(chosen.unchanged.sum()) == max(1, min(int(rank * scale + bias), 39))
    full = {**view.signals, "attention": torch.eye(6)[:, :2], "states": Tokens(torch.zeros(2, 8), torch.zeros(6, 8))}
    two = ImageView(1, torch.arange(2), None, LLAVA, {**full, "text": torch.zeros(6, 8), "image": torch.zeros(2, 8)})
    assert method.select(replace(two, act=view.act)).tolist() == [0, 1]  # full rank: nothing goes


@torch.no_grad()
@pytest.mark.parametrize("keep", [192 / 576, 0.05])
def test_sparsevlm_equals_a_reference_without_cache_layer_by_layer(keep: float) -> None:
    """Version 1.5 in plain torch on tiny LLaVA: its own attention, clustering by loops, one image after another."""
    model, recipe = built("llava"), Recipe((Stage(SparseVLM(), keep),))
    tokens, logits, _ = run_on("llava", recipe, inputs_of("llava", RAGGED))
    info = adapter_for(model).info
    counts = {act.layer: act for act in acts_of(SparseVLM(), keep, info)}
    merges = 0
    for row in range(len(RAGGED)):
        inputs = alone("llava", RAGGED, row)
        features = model.model.get_image_features(inputs["pixel_values"]).pooler_output
        embeds = model.get_input_embeddings()(inputs["input_ids"][0])
        image = torch.full((len(embeds),), -1)
        places = (inputs["input_ids"][0] == 90).nonzero().squeeze(1)
        image[places] = torch.arange(len(features)).repeat_interleave(36)
        embeds[places] = torch.cat(list(features))
        for step in range(STEPS):
            new = model.get_input_embeddings()(tokens[row, :step])
            hidden, clusters = reference_forward(model, embeds, image, new, counts)
            merges += clusters
            got = model.lm_head(model.model.language_model.norm(hidden))[-1]
            assert largest(got, logits[row, step]) < TOLERANCE
    assert merges and (keep > 0.1 or merges > 3 * 3 * STEPS)  # with few kept, an act makes several


def reference_forward(
    model: Any, embeds: Tensor, image: Tensor, new: Tensor, counts: dict[int | None, Act]
) -> tuple[Tensor, int]:
    """Hidden states [S, D] after the last layer of prompt and new tokens, and how many tokens were merged into."""
    hidden, prompt = torch.cat([embeds, new]), torch.ones(len(embeds) + len(new), dtype=torch.bool)
    prompt[len(embeds) :] = False
    image = torch.cat([image, torch.full((len(new),), -1)])
    entered, entered_image, made = hidden, image, 0
    maps = torch.empty(0)
    for number, layer in enumerate(model.model.language_model.layers):
        if number in counts:
            pieces, owners, asked, at = [], [], [], 0
            for which in range(int(image.max()) + 1):
                own = (image == which).nonzero().squeeze(1)
                text = (prompt & (image < 0)).nonzero().squeeze(1)
                text = text[text > own[-1]]
                words = (prompt_text(entered, entered_image, len(embeds), which), entered[entered_image == which])
                match = torch.softmax(words[1] @ words[0].T, dim=1).mean(0)
                raters = text[match > match.mean()]
                relation = maps[:, raters][..., own].mean((0, 1))
                total = int((entered_image == which).sum())
                k = counts[number].budget(len(own), total)
                order = relation.argsort(descending=True)
                others = order[k:]
                recycled = others[: int(0.3 * len(others)) + 1]
                merged = merge_by_loops(hidden[own[recycled]], int(len(recycled) / 10) + 1)
                made += len(merged)
                pieces += [hidden[at : own[0]], hidden[own[order[:k].sort().values]], merged]
                owners += [image[at : own[0]], torch.full((k + len(merged),), which)]
                asked += [prompt[at : own[0]], torch.ones(k + len(merged), dtype=torch.bool)]
                at = int(own[-1]) + 1
            hidden = torch.cat([*pieces, hidden[at:]])
            image, prompt = torch.cat([*owners, image[at:]]), torch.cat([*asked, prompt[at:]])
        hidden, maps = plain_layer(model, layer, hidden)
    return hidden, made


def prompt_text(entered: Tensor, image: Tensor, end: int, which: int) -> Tensor:
    """Embeddings of the prompt's text after an image."""
    last = int((image == which).nonzero()[-1])
    return torch.stack([entered[column] for column in range(last + 1, end) if image[column] < 0])


def test_a_number_of_tokens_is_a_share_of_each_image() -> None:
    share, number = (
        run_on("llava", Recipe((Stage(SparseVLM(), keep),)), inputs_of("llava", RAGGED))[2] for keep in (0.25, 9)
    )
    for (_, a), (_, b) in zip(share.stages, number.stages, strict=True):
        assert all(torch.equal(x, y) for rows in zip(a, b) for x, y in zip(*rows, strict=True))
