"""MustDrop and its cut of the cache."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from harness import (
    RAGGED,
    STEPS,
    TOLERANCE,
    built,
    extend,
    generate,
    inputs_of,
    largest,
    oracle,
    policies,
    text_part,
)
from harness_staged import ALL, HYBRID, LLAVA, SIX, TRIMMING, run_on
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers.generation.candidate_generator import PromptLookupCandidateGenerator
from versions import behind, cache_of

import vlmprune
from vlmprune.core.errors import UserError
from vlmprune.core.plan import acts_of
from vlmprune.core.recipe import Recipe, Stage
from vlmprune.core.view import Grid, ImageView, ModelInfo
from vlmprune.methods.decoder.fastv import FastV
from vlmprune.methods.decoder.mustdrop import MustDrop
from vlmprune.runtime.select import choose

QWEN = ModelInfo("qwen2_5_vl", encoder_layers=32, decoder_layers=28, has_cls=False)
families = pytest.mark.parametrize("family", SIX)


@families
def test_decoding_sees_only_the_survivors_and_it_matters(family: str) -> None:
    recipe, inputs = Recipe((ALL["mustdrop"],)), inputs_of(family, RAGGED)
    tokens, logits, report = run_on(family, recipe, inputs)
    (first, _), (last, _) = report.stages[0], report.stages[-1]
    others = {"gemma3": (0, 2), "qwen3_5": (0, 2)}.get(family, ())  # windows, and recurrent layers
    assert report.trimmed == {layer: last for layer in range(first - 1, last) if layer not in others}
    untrimmed = copy.deepcopy(report)
    untrimmed.trimmed = {}
    expected = oracle(family, RAGGED, inputs, tokens, untrimmed, policies(recipe, family))
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
    model, inputs, recipe = built(family), inputs_of(family, RAGGED), Recipe((ALL[name],))
    question = torch.tensor([[21, 22, 23, 24], [31, 32, 33, 34]])
    with vlmprune.prune(model, recipe) as session:
        first = model.generate(**inputs, max_new_tokens=STEPS, do_sample=False, return_dict_in_generate=True)
        report = session.last
        answer = first.sequences[:, inputs["input_ids"].shape[1] :]
        turn = extend(family, inputs, torch.cat([answer, question], dim=1))
        tokens, logits = generate(model, text_part(turn), **behind(cache_of(first)))
    said = torch.cat([answer, question, tokens], dim=1)
    expected = oracle(family, RAGGED, inputs, said, report, policies(recipe, family))
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
    model, inputs, recipe = built(family), inputs_of(family, RAGGED), Recipe((ALL["mustdrop"],))
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
    expected = oracle(family, RAGGED, inputs, beams, report, policies(recipe, family))
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


def chosen(method: MustDrop, view: ImageView) -> Tensor:
    """What it keeps at its first act."""
    method.observe(view)
    return method.select(view)


def test_key_tokens_are_chosen_once_and_always_stay() -> None:
    signals, memory = attended(50), {}
    view = ImageView(10, torch.arange(50), None, LLAVA, signals, memory=memory)
    kept = chosen(MustDrop(), view)
    keys = signals["cls"].argsort(descending=True)[:4]
    assert set(keys.tolist()) <= set(kept.tolist()) and set(memory["keys"].tolist()) == set(keys.tolist())
    later = {"text": signals["text"][:, kept]}
    again = MustDrop().select(ImageView(4, kept, None, LLAVA, later, memory=memory))
    assert set(kept[again].tolist()) == set(keys.tolist())
    strict = MustDrop(global_threshold=10.0, individual_threshold=10.0)
    assert set(chosen(strict, view).tolist()) == set(keys.tolist())


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
    kept = chosen(MustDrop(), ImageView(3, torch.arange(30), None, LLAVA, signals))
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
    method.observe(whole)
    kept = choose(whole)
    for frame in range(3):
        own = torch.arange(16 * frame, 16 * frame + 16)
        part = {name: value[..., own] for name, value in signals.items()}
        alone_kept = own[chosen(replace(method, per=None), ImageView(15, torch.arange(16), None, LLAVA, part))]
        assert kept[(kept >= own[0]) & (kept <= own[-1])].tolist() == alone_kept.tolist() and len(alone_kept) < 16  # type: ignore[index]


def test_thresholds_take_no_budget_and_come_together() -> None:
    recipe = vlmprune.recipe(MustDrop(global_threshold=0.001, individual_threshold=0.001))
    assert recipe.stages[0].keep == 1.0
    with pytest.raises(UserError, match="give both"):
        MustDrop(global_threshold=0.001)


def test_thresholds_judge_what_shows_a_patch_where_some_slots_do_not() -> None:
    """Video-LLaVA has a CLS slot in every frame, which the encoder's key tokens cannot be among."""
    family = "video_llava video"
    _, _, report = run_on(family, Recipe((ALL["mustdrop by thresholds"],)), inputs_of(family, [[0], [1]]))
    for (before, after), kept, cells in zip(report.tokens, report.kept, report.cells, strict=True):
        assert after < before // 2 and bool((cells[0][kept[0]] >= 0).all())
