"""MustDrop, AutoPrune, FitPrune with its calibration, TopV and spatial merging."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from golden_runners.adaptive import RUNNERS
from golden_runners.case import Case, acting, run
from golden_runners.spatial_merge import SpatialMerge
from harness import (
    RAGGED,
    STEPS,
    TOLERANCE,
    alone,
    built,
    counted,
    extend,
    generate,
    inputs_of,
    largest,
    oracle,
    text_part,
)
from harness_staged import GOLDENS, HYBRID, LLAVA, SIX, merge_by_loops, plain_layer, policies_of, run_on
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers.generation.candidate_generator import PromptLookupCandidateGenerator
from versions import behind, cache_of

import vlmprune
from vlmprune.core.errors import UserError
from vlmprune.core.method import Method
from vlmprune.core.plan import acts_of
from vlmprune.core.recipe import Recipe, Stage
from vlmprune.core.signals import LayerInput, MlpInput, TextQueryAttention, VisualQueryAttention
from vlmprune.core.view import Grid, ImageView, Merged, ModelInfo, Tokens, TowerRows
from vlmprune.fit.calibration import Fit, _Log, _Trial, fitprune
from vlmprune.methods.decoder.autoprune import AutoPrune
from vlmprune.methods.decoder.autoprune_curve import keep_shares, mutual_information, simulated
from vlmprune.methods.decoder.fastv import FastV
from vlmprune.methods.decoder.fitprune import FitPrune, expendable
from vlmprune.methods.decoder.fitprune_curves import entering, mean, published
from vlmprune.methods.decoder.mustdrop import MustDrop
from vlmprune.methods.decoder.topv import TopV
from vlmprune.methods.vision.divprune import DivPrune
from vlmprune.models import adapter_for
from vlmprune.runtime.select import choose
from vlmprune.testing import FAMILIES

QWEN = ModelInfo("qwen2_5_vl", encoder_layers=32, decoder_layers=28, has_cls=False)
DROPPING: dict[str, Stage] = {
    "mustdrop": Stage(MustDrop(), 0.4),
    "mustdrop by thresholds": Stage(MustDrop(global_threshold=0.06, individual_threshold=0.12), 1.0),
    "mustdrop without its cache cut": Stage(MustDrop(kv_prune=False), 9),
    "fitprune": Stage(FitPrune(), 0.3),
    "fitprune of uniprune": Stage(FitPrune(compat="uniprune"), 0.3),
    "topv": Stage(TopV(), 0.3),
}
MERGING: dict[str, Stage] = {
    "autoprune": Stage(AutoPrune(), 0.3),
    "autoprune with flash attention": Stage(AutoPrune(flash=True), 0.3),
}
ALL = {**DROPPING, **MERGING}
TRIMMING = ["mustdrop", "mustdrop by thresholds"]
READABLE = [family for family in SIX if family != "qwen3_5"]  # attention at every layer
families = pytest.mark.parametrize("family", SIX)
combinations = pytest.mark.parametrize(
    ("family", "name"), [(f, n) for f in SIX for n in ALL if n in DROPPING or f in READABLE]
)
paths = sorted(path for name in RUNNERS for path in (GOLDENS / name).glob("case*.json"))


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("path", paths, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_goldens(path: Path) -> None:
    run(Case(path), RUNNERS[path.parent.name])


# ---------------------------------------------------------------------- on models


@families
@pytest.mark.parametrize("name", DROPPING)
def test_dropping_equals_the_oracle_in_a_ragged_batch(family: str, name: str) -> None:
    recipe, inputs = Recipe((DROPPING[name],)), inputs_of(family, RAGGED)
    tokens, logits, report = run_on(family, recipe, inputs)
    expected = oracle(family, RAGGED, inputs, tokens, report, policies_of(recipe, family))
    assert all(after < before for before, after in report.tokens)
    assert largest(logits, expected) < TOLERANCE


@combinations
def test_batch_equals_alone(family: str, name: str) -> None:
    recipe = Recipe((ALL[name],))
    tokens, logits, report = run_on(family, recipe, inputs_of(family, RAGGED))
    for row in range(len(RAGGED)):
        one_tokens, one_logits, one = run_on(family, recipe, alone(family, RAGGED, row))
        assert torch.equal(one_tokens[0], tokens[row])
        assert largest(one_logits[0], logits[row]) < TOLERANCE
        assert all(torch.equal(a, b) for a, b in zip(one.kept[0], report.kept[row], strict=True))


@combinations
def test_cached_equals_uncached(family: str, name: str) -> None:
    """Where the cache is cut, the first new token; the others see less of it."""
    model, inputs = built(family), inputs_of(family, RAGGED)
    with vlmprune.prune(model, Recipe((ALL[name],))) as session:
        tokens, logits = generate(model, inputs)
        kept = session.last.kept
        for step in (0, STEPS - 1)[: 1 if name in TRIMMING else 2]:
            longer = counted(family, extend(family, inputs, tokens[:, :step]))
            again = model(**longer, use_cache=False, logits_to_keep=step + 1).logits
            assert largest(again[:, -1], logits[:, step]) < TOLERANCE
            assert all(torch.equal(a, b) for x, y in zip(kept, session.last.kept) for a, b in zip(x, y))


@families
def test_behind_a_stage_before_the_llm_shares_count_what_it_leaves(family: str) -> None:
    recipe, inputs = Recipe((Stage(DivPrune(), 0.6), Stage(FitPrune(), 0.5))), inputs_of(family, RAGGED)
    tokens, logits, report = run_on(family, recipe, inputs)
    expected = oracle(family, RAGGED, inputs, tokens, report, policies_of(recipe, family))
    assert largest(logits, expected) < TOLERANCE
    curve = entering(published(), 0.5, adapter_for(built(family)).info.decoder_layers)
    for image, seed in enumerate(RAGGED[0]):
        first, now = round(0.6 * FAMILIES[family].slots(seed)), 10**6
        counts = {layer: len(kept[0][image]) for layer, kept in report.stages}
        assert counts.pop(0) == first
        for layer, count in counts.items():
            now = min(now, first, max(1, round(curve[layer] * first)))
            assert count == now


@pytest.mark.parametrize("name", [name for name in ALL if "thresholds" not in name])
@pytest.mark.parametrize("family", ["llava", "qwen3_vl"])
def test_keeping_everything_is_bit_identical(family: str, name: str) -> None:
    inputs = inputs_of(family, RAGGED)
    ids, logits = generate(built(family), inputs)
    pruned_ids, pruned_logits, report = run_on(family, Recipe((Stage(ALL[name].method, 1.0),)), inputs)
    assert torch.equal(ids, pruned_ids) and torch.equal(logits, pruned_logits)
    assert all(before == after for before, after in report.tokens)


# ---------------------------------------------------------------------- MustDrop's cut of the cache


@families
def test_decoding_sees_only_the_survivors_and_it_matters(family: str) -> None:
    recipe, inputs = Recipe((DROPPING["mustdrop"],)), inputs_of(family, RAGGED)
    tokens, logits, report = run_on(family, recipe, inputs)
    (first, _), (last, _) = report.stages[0], report.stages[-1]
    others = {"gemma3": (0, 2), "qwen3_5": (0, 2)}.get(family, ())  # windows, and recurrent layers
    assert report.trimmed == {layer: last for layer in range(first - 1, last) if layer not in others}
    untrimmed = copy.deepcopy(report)
    untrimmed.trimmed = {}
    expected = oracle(family, RAGGED, inputs, tokens, untrimmed, policies_of(recipe, family))
    assert largest(logits[:, 0], expected[:, 0]) < TOLERANCE
    if report.trimmed:
        assert largest(logits[:, 1:], expected[:, 1:]) > 50 * TOLERANCE


def test_the_cache_holds_what_the_last_act_left() -> None:
    model, inputs = built("llava"), inputs_of("llava", RAGGED)
    with vlmprune.prune(model, MustDrop(layers=(2, 3)), 0.5) as session:
        cache = cache_of(model(**inputs))
    lengths = [cache.layers[layer].get_seq_length() for layer in range(4)]
    text = (inputs["input_ids"] != 90) & inputs["attention_mask"].bool()
    counts = [[sum(map(len, kept[row])) + int(text[row].sum()) for row in range(2)] for _, kept in session.last.stages]
    assert lengths == [inputs["input_ids"].shape[1], *[max(counts[-1])] * 3]
    assert session.last.trimmed == {1: 3, 2: 3}
    assert session.last.entering[0] > counts[-1][0] - int(text[0].sum())  # the prompt was read with more


@pytest.mark.parametrize("name", TRIMMING)
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "qwen3_vl", "internvl", "gemma3"])
def test_second_turn_on_a_cut_cache(family: str, name: str) -> None:
    model, inputs, recipe = built(family), inputs_of(family, RAGGED), Recipe((DROPPING[name],))
    question = torch.tensor([[21, 22, 23, 24], [31, 32, 33, 34]])
    with vlmprune.prune(model, recipe) as session:
        first = model.generate(**inputs, max_new_tokens=STEPS, do_sample=False, return_dict_in_generate=True)
        report = session.last
        answer = first.sequences[:, inputs["input_ids"].shape[1] :]
        turn = extend(family, inputs, torch.cat([answer, question], dim=1))
        tokens, logits = generate(model, text_part(turn), **behind(cache_of(first)))
    said = torch.cat([answer, question, tokens], dim=1)
    expected = oracle(family, RAGGED, inputs, said, report, policies_of(recipe, family))
    assert largest(logits, expected[:, -STEPS:]) < TOLERANCE


def test_new_image_behind_a_cut_cache() -> None:
    """Of the first turn only survivors are there; the second turn's own prompt is read in full, then cut too."""
    model, inputs, more = built("llava"), inputs_of("llava", [[0], [4]]), inputs_of("llava", [[1], [5]], seed=50)
    with vlmprune.prune(model, MustDrop(), 0.4) as session:
        first = model.generate(**inputs, max_new_tokens=STEPS, do_sample=False, return_dict_in_generate=True)
        answer = first.sequences[:, inputs["input_ids"].shape[1] :]
        full = text_part(extend("llava", inputs, answer))
        for key, value in text_part(more).items():
            full[key] = torch.cat([full[key], value], dim=1)
        _, logits = generate(model, {**full, "pixel_values": more["pixel_values"]}, **behind(cache_of(first)))
        again = session.last
        for row in range(2):  # padding is not in the way
            own = {key: value[row : row + 1] for key, value in inputs.items()}
            real = own["attention_mask"][0].bool()
            own = {key: value[:, real] if value.ndim == 2 else value for key, value in own.items()}
            alone_first = model.generate(**own, max_new_tokens=STEPS, do_sample=False, return_dict_in_generate=True)
            rest = {key: value[row : row + 1] for key, value in more.items()}
            real = rest["attention_mask"][0].bool()
            ids = torch.cat([alone_first.sequences, rest["input_ids"][:, real]], dim=1)
            turn = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": rest["pixel_values"]}
            _, single = generate(model, turn, **behind(cache_of(alone_first)))
            assert largest(single[0], logits[row]) < TOLERANCE
            assert torch.equal(session.last.kept[0][0], again.kept[row][0])


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "qwen3_vl", "internvl", "gemma3"])
def test_static_cache_and_beams_and_lookup_on_a_cut_cache(family: str) -> None:
    model, inputs, recipe = built(family), inputs_of(family, RAGGED), Recipe((DROPPING["mustdrop"],))
    tokens, logits, _ = run_on(family, recipe, inputs)
    with vlmprune.prune(model, recipe) as session:
        static, fixed = generate(model, inputs, cache_implementation="static", disable_compile=True)
        assert torch.equal(tokens, static) and largest(logits, fixed) < TOLERANCE
        out = model.generate(
            **inputs, num_beams=3, max_new_tokens=STEPS, do_sample=False, length_penalty=0.0,
            return_dict_in_generate=True, output_scores=True,
        )  # fmt: skip
        report = session.last
        one = extend(family, inputs_of(family, [[0, 1]]), torch.tensor([[11, 12, 13, 14, 15, 11, 12]]))
        greedy = model.generate(**one, max_new_tokens=8, do_sample=False)
        lookup = model.generate(**one, max_new_tokens=8, do_sample=False, prompt_lookup_num_tokens=3)
    assert torch.equal(greedy, lookup)
    beams = out.sequences[:, inputs["input_ids"].shape[1] :]
    expected = oracle(family, RAGGED, inputs, beams, report, policies_of(recipe, family))
    chosen = expected.log_softmax(-1).gather(2, beams[..., None])[..., 0].sum(1)
    assert largest(chosen, out.sequences_scores) < 10 * TOLERANCE


def proposed(answer: Tensor, ids: Tensor) -> tuple[Tensor, None]:
    """Candidates that are the answer's next tokens."""
    return torch.cat([ids, answer[:, ids.shape[1] :][:, :4]], dim=1), None


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_candidates_wait_until_the_cache_is_cut(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one forward with the prompt they would see what it sees, and be judged by other logits than step by step."""
    model, differ = built(family), 0
    for seed in range(6):
        inputs = inputs_of(family, [[0, 1]], seed=seed)
        with vlmprune.prune(model, MustDrop(), 0.4):
            greedy = model.generate(**inputs, max_new_tokens=8, do_sample=False)
            best = partial(proposed, greedy)
            monkeypatch.setattr(PromptLookupCandidateGenerator, "get_candidates", best)
            lookup = model.generate(**inputs, max_new_tokens=8, do_sample=False, prompt_lookup_num_tokens=4)
            at = inputs["input_ids"].shape[1]
            longer = extend(family, inputs, greedy[:, at:-1])
            together = model(**longer, logits_to_keep=8).logits.argmax(-1)
        assert torch.equal(greedy, lookup)
        differ += not torch.equal(together, greedy[:, at:])
    assert differ or family != "llava"  # the two kinds of logits do choose differently
    assert "_get_candidate_generator" not in model.__dict__


@pytest.mark.parametrize("positions", ["original", "compact"])
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "qwen3_vl", "internvl"])
def test_caches_are_cut_through_what_another_stage_cut_in_between(family: str, positions: str) -> None:
    inputs, stages = (
        inputs_of(family, RAGGED),
        ((MustDrop(layers=(1,)), 0.7), (FastV(), 0.6), (MustDrop(layers=(3,)), 0.8)),
    )
    with vlmprune.prune(
        built(family), Recipe(tuple(Stage(*stage) for stage in stages)), positions=positions
    ) as session:
        tokens, logits = generate(built(family), inputs)
    assert [layer for layer, _ in session.last.stages] == [1, 2, 3] and session.last.trimmed == {0: 3, 1: 3, 2: 3}
    expected = oracle(family, RAGGED, inputs, tokens, session.last, dict.fromkeys((1, 2, 3), positions))
    assert largest(logits, expected) < TOLERANCE


# ---------------------------------------------------------------------- AutoPrune against a step-by-step reference


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
        run_on("qwen3_5", Recipe((MERGING["autoprune"],)), inputs_of("qwen3_5", RAGGED))
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


# ---------------------------------------------------------------------- MustDrop's filter


def attended(n: int, words: int = 5, seed: int = 0) -> dict[str, Tensor]:
    made = torch.Generator().manual_seed(seed)
    return {"text": torch.rand(words, n, generator=made) ** 4 / n, "cls": torch.rand(n, generator=made)}


@settings(max_examples=50, deadline=None)
@given(st.integers(2, 80), st.data(), st.integers(0, 999))
def test_a_budget_is_one_threshold_of_both_kinds(n: int, data: Any, seed: int) -> None:
    keep, signals = data.draw(st.integers(1, n - 1)), attended(n, seed=seed)
    kept = MustDrop(key_share=0.0).select(ImageView(keep, torch.arange(n), None, LLAVA, signals))
    assert len(kept) == keep and torch.equal(kept, kept.unique())
    weight = torch.maximum(signals["text"].sum(0) / signals["text"].sum(), signals["text"].amax(0))
    threshold = float(weight[kept].min()) * (1 - 1e-6)
    given_one = MustDrop(global_threshold=threshold, individual_threshold=threshold, key_share=0.0)
    assert torch.equal(given_one.select(ImageView(n - 1, torch.arange(n), None, LLAVA, signals)), kept)


def test_key_tokens_are_chosen_once_and_always_stay() -> None:
    signals, memory = attended(50), {}
    view = ImageView(10, torch.arange(50), None, LLAVA, signals, memory=memory)
    kept = MustDrop().select(view)
    keys = signals["cls"].argsort(descending=True)[:4]
    assert set(keys.tolist()) <= set(kept.tolist()) and set(memory["keys"][None].tolist()) == set(keys.tolist())
    later = {"text": signals["text"][:, kept], "cls": 1 - signals["cls"][kept]}
    again = MustDrop().select(ImageView(4, kept, None, LLAVA, later, memory=memory))
    assert set(kept[again].tolist()) == set(keys.tolist())
    strict = MustDrop(global_threshold=10.0, individual_threshold=10.0)
    assert set(strict.select(view).tolist()) == set(keys.tolist())


@pytest.mark.parametrize("info", [LLAVA, QWEN, replace(LLAVA, decoder_layers=5), HYBRID], ids=lambda i: str(i))
@pytest.mark.parametrize("keep", [1.0, 0.333, 0.111])
def test_mustdrop_keeps_on_average_what_it_is_asked(info: ModelInfo, keep: float) -> None:
    method = MustDrop()
    layers = method.schedule(info)
    shares = method.shares(keep, layers, info)
    ends = [*(layer - 1 for layer in layers), info.decoder_layers]
    passed = ends[0] + sum(s * (b - a) for s, a, b in zip(shares, ends, ends[1:], strict=False))
    assert abs(passed / info.decoder_layers - keep) < 1e-6 or shares[0] < 1e-6
    if info is LLAVA:
        assert layers == (3, 7, 11, 15)


def test_without_text_after_the_image_the_key_tokens_stay() -> None:
    signals = {**attended(30), "text": torch.zeros(0, 30)}
    kept = MustDrop().select(ImageView(3, torch.arange(30), None, LLAVA, signals))
    assert set(kept.tolist()) == set(signals["cls"].argsort(descending=True)[:3].tolist())


def test_where_no_token_passes_the_filter_the_best_stays() -> None:
    signals = attended(20)
    strict = MustDrop(global_threshold=10.0, individual_threshold=10.0, key_share=0.0)
    weight = torch.maximum(signals["text"].sum(0) / signals["text"].sum(), signals["text"].amax(0))
    kept = strict.select(ImageView(19, torch.arange(20), None, LLAVA, signals))
    assert kept.tolist() == [int(weight.argmax())]


def test_thresholds_judge_every_frame() -> None:
    method = MustDrop(global_threshold=0.1, individual_threshold=0.1, per="frame")
    act, signals = acts_of(method, 1.0, LLAVA)[0], attended(48)
    whole = ImageView(47, torch.arange(48), Grid(4, 4, 3), LLAVA, signals, act=act)
    kept = choose(whole)
    for frame in range(3):
        own = torch.arange(16 * frame, 16 * frame + 16)
        part = {name: value[..., own] for name, value in signals.items()}
        alone_kept = own[replace(method, per=None).select(ImageView(15, torch.arange(16), None, LLAVA, part))]
        assert kept[(kept >= own[0]) & (kept <= own[-1])].tolist() == alone_kept.tolist() and len(alone_kept) < 16  # type: ignore[index]


def test_thresholds_take_no_budget_and_come_together() -> None:
    recipe = vlmprune.recipe(MustDrop(global_threshold=0.001, individual_threshold=0.001))
    assert recipe.stages[0].keep == 1.0
    with pytest.raises(UserError, match="give both"):
        MustDrop(global_threshold=0.001)


# ---------------------------------------------------------------------- FitPrune


def test_the_score_needs_both_kinds_of_attention() -> None:
    assert FitPrune().needs(LLAVA) == {
        "visual": VisualQueryAttention(heads="max"),
        "text": TextQueryAttention(heads="max"),
    }
    visual, text = torch.tensor([0.1, 0.4, 0.2]), torch.tensor([[0.5, 0.0, 0.1], [0.5, 0.0, 0.2]])
    view = ImageView(1, torch.arange(3), None, LLAVA, {"visual": visual, "text": text})
    assert torch.allclose(FitPrune().score(view), torch.tensor([0.1, 0.0, 0.06]))
    assert FitPrune().select(view).tolist() == [0]
    assert FitPrune(compat="uniprune").select(view).tolist() == [1]
    view.signals = {"visual": visual, "text": torch.zeros(0, 3)}
    assert FitPrune().select(view).tolist() == [1]


@settings(max_examples=60, deadline=None)
@given(st.floats(0.04, 0.999), st.integers(2, 60))
def test_curves_have_the_mean_that_is_asked_and_never_rise(keep: float, depth: int) -> None:
    curve = entering(published(), keep, depth)
    assert len(curve) == depth and abs(mean(curve) - keep) < 1e-9
    assert all(a >= b - 1e-12 for a, b in pairwise(curve)) and curve[-1] >= -1e-12


@pytest.mark.parametrize(("info", "acts"), [(LLAVA, 31), (QWEN, 27), (HYBRID, 7)])
def test_every_layer_that_can_be_read_deletes(info: ModelInfo, acts: int) -> None:
    made = acts_of(FitPrune(), 0.3, info)
    assert len(made) == acts
    left = [576]
    for act in made:
        left.append(act.budget(left[-1], 576))
    curve = entering(published(), 0.3, info.decoder_layers)
    assert left[-1] == round(576 * curve[made[-1].layer or 0]) and left == sorted(left, reverse=True)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(0, 999), st.floats(0, 1), st.floats(1, 1.3))
def test_expendable_is_the_two_prefixes_in_common(n: int, seed: int, alpha: float, more: float) -> None:
    cross, own = torch.rand(2, n, generator=torch.Generator().manual_seed(seed))
    whole = float(cross.sum()) * more, float(own.sum()) * more
    sets = []
    for values, total in zip((cross, own), whole, strict=True):
        left, gone = float(values.double().sum()), set()
        for i in values.argsort().tolist():
            left -= float(values[i])
            if left < (1 - alpha) * total:
                break
            gone.add(i)
        sets.append(gone)
    by_cross, by_self, both = expendable(cross, own, whole, alpha)
    assert abs(by_cross - len(sets[0])) <= (alpha > 0.999) and abs(by_self - len(sets[1])) <= (alpha > 0.999)
    if alpha <= 0.999:
        assert both.tolist() == sorted(sets[0] & sets[1])


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_calibration(family: str, tmp_path: Path) -> None:
    model, batches = built(family), [inputs_of(family, RAGGED), inputs_of(family, [[3]])]
    steps: list[tuple[float, float]] = []
    fit = fitprune(model, batches, 0.5, progress=lambda *step: steps.append(step))
    assert fit.images == 4 and len(fit.shares) == 4 and fit.shares[0] == 1.0
    assert mean(fit.shares) == pytest.approx(fit.keep) and fit.keep <= 0.5
    met = [alpha for alpha, share in steps if share <= 0.5]
    missed = [alpha for alpha, share in steps if share > 0.5]
    assert fit.alpha == min(met) and max(missed) < fit.alpha < max(missed) + 0.02
    assert fit.keep == dict(steps)[fit.alpha]  # the recipe is that of the last alpha that met the budget
    assert "_vlmprune_session" not in model.__dict__
    fit.save(tmp_path / "fit.json")
    assert Fit.load(tmp_path / "fit.json") == fit
    reports = []
    for recipe in (fit.shares, str(tmp_path / "fit.json")):
        with vlmprune.prune(model, FitPrune(recipe=recipe), fit.keep) as session:
            model(**batches[0])
        reports.append(session.last)
    for layer, share in zip((1, 2, 3), fit.shares[1:], strict=True):
        for row, images in enumerate(dict(reports[0].stages)[layer]):
            for image, kept in enumerate(images):
                assert len(kept) == max(1, round(share * FAMILIES[family].slots(RAGGED[row][image])))
    assert reports[0].entering == reports[1].entering


def test_once_the_budget_is_met_the_remaining_layers_delete_nothing() -> None:
    log = _Log(depth=5, left=[{1: 0.5, 2: 0.25, 3: 0.1, 4: 0.05}, {1: 0.7, 2: 0.35}])
    assert log.shares(0.6) == pytest.approx((1.0, 0.6, 0.3, 0.3, 0.3))  # 1 + 0.6 + 3 * 0.3 of 5 * 0.6
    assert log.shares(0.1) == pytest.approx((1.0, 0.6, 0.3, 0.225, 0.2))


def test_a_trial_goes_by_what_its_own_layer_paid_in_the_unpruned_model() -> None:
    text, own = torch.tensor([[0.4, 0.3, 0.2, 0.1]]), torch.tensor([0.1, 0.4, 0.3, 0.2])

    def kept(alpha: float) -> list[int]:
        log = _Log(depth=3, totals=[{1: (9.0, 9.0), 2: (1.0, 1.0)}], alpha=alpha)
        method = _Trial(log=log)
        view = ImageView(3, torch.arange(4), None, LLAVA, {"text": text, "visual": own}, total=8)
        chosen = method.select(replace(view, act=acts_of(method, 0.5, LLAVA)[1]))
        assert log.left == [{2: len(chosen) / 8}]
        return chosen.tolist()

    assert kept(0.35) == [0, 1, 2]  # of 3 and 2 by the text, and of 0 and 3 by the image
    assert kept(1.0) == [1]  # where all may go, the highest product stays


@torch.no_grad()
def test_calibration_deletes_by_the_models_own_attention() -> None:
    inputs = alone("llava", RAGGED, 1)
    fit = fitprune(built("llava"), [inputs], 0.4)
    maps = built("llava", "eager")(**inputs, output_attentions=True).attentions[0][0].amax(0)
    own = (inputs["input_ids"][0] == 90).nonzero().squeeze(1)
    cross, visual = maps[own[-1] + 1 :, own].sum(0), maps[own][:, own].mean(0)
    _, _, gone = expendable(cross, visual, (float(cross.sum()), float(visual.sum())), fit.alpha)
    assert fit.shares[1] == pytest.approx(1 - len(gone) / 36)


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("/nowhere/fit.json", "must be a JSON file with a list"),
        ((0.5, 0.4), "first 1.0, then never more"),
        ((1.0, 0.4, 0.5), "first 1.0, then never more"),
        ((1.0,), "first 1.0, then never more"),
        ((1.0, "x"), "first 1.0, then never more"),
    ],
)
def test_a_recipe_that_is_none_is_one_sentence(recipe: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        FitPrune(recipe=recipe)


def test_calibration_says_what_it_cannot_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"No recipe for this model keeps as little as 0\.2"):
        fitprune(built("llava"), [inputs_of("llava", RAGGED)], 0.2)
    with pytest.raises(UserError, match="is not a share of tokens"):
        fitprune(built("llava"), [], 2)
    with pytest.raises(UserError, match="No image in these prompts"):
        fitprune(built("llava"), [], 0.5)
    (tmp_path / "other.json").write_text(json.dumps({"shares": [1.0, 0.5]}))
    with pytest.raises(UserError, match="is not a recipe that"):
        Fit.load(tmp_path / "other.json")


# ---------------------------------------------------------------------- TopV


def transported(n: int, keep: int, grid: Grid | None = None, seed: int = 0, same: bool = False) -> ImageView:
    made = torch.Generator().manual_seed(seed)
    source, target = torch.randn(2, n, 12, generator=made)
    if same:
        source, target = torch.ones(2, n, 12)
    return ImageView(keep, torch.arange(n), grid, LLAVA, {"source": source, "target": target})


@pytest.mark.parametrize("options", [{}, {"score": "sharpness"}, {"feature": "cosine", "spatial": "plain"}], ids=str)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_topv_keeps_the_budget_and_forgets_no_part_of_the_picture(options: dict[str, Any], data: Any) -> None:
    rows, cols = data.draw(st.integers(1, 9)), data.draw(st.integers(2, 9))
    n = rows * cols
    keep = data.draw(st.integers(1, n - 1))
    view = transported(n, keep, Grid(rows, cols), seed=n, same=data.draw(st.booleans()))
    kept = TopV(**options).select(view)
    assert len(kept) == keep and torch.equal(kept, kept.unique())
    best = TopV(recover=0.0, **options).select(view)
    assert len(set(best.tolist()) & set(kept.tolist())) >= keep - round(0.2 * keep)


def test_topv_reads_what_enters_a_layer_and_what_its_mlp_reads_after_layer_two() -> None:
    assert TopV().needs(LLAVA) == {"source": LayerInput(), "target": MlpInput()}
    assert TopV().decoder_layer(LLAVA) == 3


def test_topv_by_loops() -> None:
    """The formula, a pair of tokens at a time: two frames of 2 x 3."""
    view, method = transported(12, 4, Grid(2, 3, 2)), TopV(near=0.1, width=0.3, central=0.2, eps=0.1)
    source, target = view["source"], view["target"]
    places = [(f, r, c) for f in range(2) for r in range(2) for c in range(3)]
    apart = [[float((x - y).norm()) for y in target] for x in source]
    scale = sum(map(sum, apart)) / 144
    cost = torch.zeros(12, 12)
    for i, (f, r, c) in enumerate(places):
        central = math.hypot(r - 0.5, c - 1) / (math.sqrt(5) / 2)
        for j, (g, s, d) in enumerate(places):
            square = ((r - s) ** 2 + (c - d) ** 2) / 5 + ((f - g) / 2) ** 2
            cost[i, j] = apart[i][j] / scale + 0.1 * (1 - math.exp(-square / (2 * 0.3**2))) + 0.2 * central
    assert torch.allclose(method.cost(view), cost, atol=1e-5)
    given = (-cost / 0.1).exp()
    assert torch.allclose(method.scores(view), (given / given.sum(0)).mean(1), atol=1e-6)
    for _ in range(method.iterations):
        given = given / given.sum(1, keepdim=True)
        given = given / given.sum(0)
    sharp = replace(method, score="sharpness").scores(view)
    assert torch.allclose(sharp.exp(), given.amax(1), atol=1e-5)


def test_topv_does_not_depend_on_the_order_of_the_tokens() -> None:
    view, order = transported(48, 12, Grid(6, 8)), torch.randperm(48, generator=torch.Generator().manual_seed(1))
    shuffled = view.part(order, 12, {name: value[order] for name, value in view.signals.items()})
    for method in (TopV(), TopV(score="sharpness"), TopV(feature="cosine")):
        assert torch.allclose(method.scores(view)[order], method.scores(shuffled), atol=1e-6)


def test_topv_of_alike_tokens_is_central_and_spread() -> None:
    view = transported(81, 20, Grid(9, 9), same=True)
    central = TopV(feature="cosine", near=0.0, central=1.0, recover=0.0).select(replace(view, keep=9))
    assert set(central.tolist()) == {r * 9 + c for r in (3, 4, 5) for c in (3, 4, 5)}
    spread = TopV(feature="cosine", near=0.0, central=0.0, recover=1.0).select(view)
    assert spread.tolist() == list(range(2, 82, 4))


def test_topv_costs_are_bounded_and_frames_are_apart() -> None:
    view = transported(48, 12, Grid(4, 4, 3))
    cost = TopV(feature="cosine", spatial="plain", near=0.5, central=0.1).cost(replace(view, grid=Grid(6, 8)))
    assert cost.min() >= 0 and cost.max() <= 2.6 + 1e-6
    flat = TopV(feature="cosine", central=0.0).cost(transported(48, 12, Grid(4, 4, 3), same=True))
    assert flat[0, 16] > flat[0, 0] and torch.allclose(flat[0, 16], flat[16, 32])
    assert len(TopV().select(transported(10, 3))) == 3  # no grid


def test_topv_drops_slots_without_a_place_first() -> None:
    view = transported(10, 4, Grid(3, 3))
    view.cells = torch.tensor([0, 1, 2, -1, 3, 4, 5, 6, 7, 8])
    assert 3 not in choose(acting(TopV(), 4, view)).tolist()  # type: ignore[union-attr]


# ---------------------------------------------------------------------- spatial merging


def patches(side: int, seed: int = 0) -> ImageView:
    rows = torch.randn(side * side, 8, generator=torch.Generator().manual_seed(seed))
    return ImageView(
        side * side - 1, torch.arange(side * side), Grid(side, side), LLAVA, {"rows": TowerRows(rows, None)}
    )


@pytest.mark.parametrize(("side", "keep", "left"), [(6, 20, 20), (6, 19, 12), (6, 4, 4), (7, 33, 33), (8, 50, 48)])
def test_the_fewest_windows_that_meet_the_budget_are_merged(side: int, keep: int, left: int) -> None:
    view = replace(patches(side), keep=keep)
    merged = SpatialMerge().select(view)
    rows, taken = view["rows"].rows, set()
    assert len(merged.features) == left
    likeness = []
    for anchor, feature in zip(merged.anchors.tolist(), merged.features, strict=True):
        r, c = divmod(anchor, side)
        window = [(r + dr) * side + c + dc for dr in (-1, 0, 1) for dc in (-1, 0, 1)]
        if len(likeness) < (side * side - left) // 8:
            assert torch.allclose(feature, rows[window].mean(0), atol=1e-6)
            pairs = [(i, j) for i in window for j in window if i != j]
            likeness.append(sum(float(torch.cosine_similarity(rows[i], rows[j], dim=0)) for i, j in pairs) / 72)
            taken |= set(window)
        else:
            assert anchor not in taken and torch.equal(feature, rows[anchor])
            taken.add(anchor)
    assert likeness == sorted(likeness, reverse=True) and len(taken) == side * side


def test_spatial_merging_says_what_it_cannot_do() -> None:
    with pytest.raises(UserError, match="4 of 36 tokens are left: give a budget of 4 or more"):
        SpatialMerge().select(replace(patches(6), keep=3))
    with pytest.raises(UserError, match="on a grid"):
        SpatialMerge().select(replace(patches(6), grid=None))
    with pytest.raises(UserError, match="threshold=2 must be"):
        SpatialMerge(threshold=2)
    assert len(SpatialMerge(threshold=1.0).select(patches(2)).features) == 4


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "internvl"])
def test_spatial_merging_runs_before_the_llm(family: str) -> None:
    _, logits, report = run_on(family, Recipe((Stage(SpatialMerge(threshold=0.0), 1.0),)), inputs_of(family, RAGGED))
    assert bool(logits.isfinite().all())
    assert all((before - after) % 8 == 0 for before, after in report.tokens)


# ---------------------------------------------------------------------- what they say of themselves


@pytest.mark.parametrize("cls", [MustDrop, AutoPrune, FitPrune, TopV, SpatialMerge])
def test_a_method_says_what_it_is(cls: type[Method]) -> None:
    assert cls.summary and "\n" not in cls.summary and len(cls.summary) < 110
    for heading in ("Paper:", "Formula:", "Defaults:", "Args:", "Differences from the authors' code:"):
        assert heading in (cls.__doc__ or ""), heading
    if cls in (MustDrop, AutoPrune, SpatialMerge):
        assert [cls().positions(info) for info in (LLAVA, QWEN)] == ["compact", "original"]
    else:
        assert cls().positions(LLAVA) == "original"


@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (MustDrop, {"key_share": 1.5}),
        (MustDrop, {"kv_prune": 1}),
        (MustDrop, {"global_threshold": -1.0, "individual_threshold": 0.1}),
        (AutoPrune, {"flash": "yes"}),
        (AutoPrune, {"mi_rows": "all"}),
        (AutoPrune, {"mi_reduce": "max"}),
        (AutoPrune, {"gamma": -0.1}),
        (AutoPrune, {"x0": "14"}),
        (FitPrune, {"compat": "official"}),
        (TopV, {"feature": "l1"}),
        (TopV, {"eps": 0}),
        (TopV, {"recover": 2}),
        (TopV, {"iterations": 0}),
        (SpatialMerge, {"side": 1}),
    ],
)
def test_a_wrong_option_is_one_sentence(cls: type[Method], options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=rf"^{cls.name}: {next(iter(options))}=.* must be .*\.$"):
        cls(**options)


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


def test_thresholds_judge_what_shows_a_patch_where_some_slots_do_not() -> None:
    """Video-LLaVA has a CLS slot in every frame, which the encoder's key tokens cannot be among."""
    family = "video_llava video"
    _, _, report = run_on(family, Recipe((DROPPING["mustdrop by thresholds"],)), inputs_of(family, [[0], [1]]))
    for (before, after), kept, cells in zip(report.tokens, report.kept, report.cells, strict=True):
        assert after < before // 2 and bool((cells[0][kept[0]] >= 0).all())
