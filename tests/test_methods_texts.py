"""TRIM, CDPruner and Recoverable Compression: what each owes its caller, and all of the runtime."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from golden_runners.case import acting
from harness import RAGGED, TOLERANCE, alone, built, generate, inputs_of, largest
from harness_embeddings import assemble, greedy_on_embeddings
from harness_text import QUESTION, shown_with_text, tower
from harness_views import INFOS, KINDS, LLAVA, NEXT, QWEN, cases, merged_by, picked
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import vlmprune
from vlmprune.core.errors import UserError
from vlmprune.core.method import Method
from vlmprune.core.recipe import Recipe, Stage, format_method
from vlmprune.core.signals import Alignment, ClsAttention, EncoderKeys, Features, TowerFeatures
from vlmprune.core.view import Aligned, Grid, ImageView, Merged, TowerRows
from vlmprune.methods.vision.cdpruner import CDPruner
from vlmprune.methods.vision.recoverable import Recoverable
from vlmprune.methods.vision.trim import Trim
from vlmprune.models import adapter_for
from vlmprune.runtime.select import choose

CHOOSING = [CDPruner(), CDPruner(theta=0.9, relevance_sign=1), CDPruner(theta=0.0, score_dtype="float16")]
MERGING = [Trim(), Trim(metric="cosine"), Trim(metric="dot", relevance_sign=1), Recoverable()]
ADAPTIVE = [Trim(adaptive=True), Recoverable(adaptive=True), Recoverable(adaptive=True, relevance_sign=-1)]
OFFICIAL = [Trim(compat="official"), Recoverable(compat="official")]
ALL: list[Method] = [*CHOOSING, *MERGING, *ADAPTIVE]


@st.composite
def more_cases(draw: st.DrawFn) -> dict[str, Any]:
    return {**draw(cases()), "info": draw(st.sampled_from(INFOS)), "clip": draw(st.booleans())}


@pytest.mark.parametrize("asked", CHOOSING, ids=format_method)
@given(case=more_cases())
@settings(max_examples=60, deadline=None)
def test_exactly_the_budget_in_order_and_again_the_same(asked: Method, case: dict[str, Any]) -> None:
    chosen = picked(asked, shown_with_text(asked, **case))
    assert chosen.dtype == torch.long and len(chosen) == case["keep"]
    assert chosen.tolist() == sorted(set(chosen.tolist()))
    assert int(chosen[0]) >= 0 and int(chosen[-1]) < case["n"]
    assert torch.equal(chosen, picked(asked, shown_with_text(asked, **case)))


@pytest.mark.parametrize("asked", [*MERGING, *ADAPTIVE], ids=format_method)
@given(case=more_cases())
@settings(max_examples=40, deadline=None)
def test_merged_tokens_are_finite_and_each_has_a_place_of_its_own(asked: Method, case: dict[str, Any]) -> None:
    merged, again = (merged_by(asked, shown_with_text(asked, **case)) for _ in range(2))
    anchors = merged.anchors.tolist()
    assert len(anchors) == len(merged.features) == len(set(anchors)) >= 1
    assert min(anchors) >= 0 and max(anchors) < case["n"] and merged.space == "tower"
    assert merged.features.isfinite().all()
    assert torch.equal(merged.features, again.features) and torch.equal(merged.anchors, again.anchors)
    assert len(anchors) == case["keep"] or not asked.exact
    if asked.positions(case["info"]) == "original":
        assert anchors == sorted(anchors)


@pytest.mark.parametrize("asked", [*CHOOSING, *MERGING], ids=format_method)
@pytest.mark.parametrize("info", INFOS, ids=lambda info: info.family)
@pytest.mark.parametrize("kind", KINDS)
def test_tiles_share_the_budget_through_the_runtime(asked: Method, info: Any, kind: str) -> None:
    for keep in (3, 33, 79):  # with 79 some tiles stay whole
        view = shown_with_text(asked, n=80, keep=keep, kind=kind, info=info, grid=Grid(4, 4, 5))
        for name, signal in view.signals.items():
            if isinstance(signal, TowerRows) and signal.cls is not None:
                view.signals = {**view.signals, name: TowerRows(signal.rows, signal.cls.expand(5, -1))}
        chosen = choose(acting(asked, keep, view))
        anchors = chosen.anchors if isinstance(chosen, Merged) else chosen
        assert len(set(anchors.tolist())) == keep
        if asked.pool(info) == "frame" or info.llava:
            counts = torch.bincount(anchors // 16, minlength=5)
            assert counts.max() - counts.min() <= 1


@pytest.mark.parametrize("asked", ADAPTIVE, ids=format_method)
@pytest.mark.parametrize("sizes", [(16, 16, 16), (1, 9, 16), (16, 1, 1), (2, 1, 16), (1, 1, 2)])
def test_each_tile_counts_its_own_whatever_an_earlier_stage_left_of_it(asked: Method, sizes: tuple[int, ...]) -> None:
    slots = torch.cat([16 * tile + torch.arange(size) for tile, size in enumerate(sizes)])
    view = shown_with_text(asked, n=len(slots), keep=1, grid=Grid(4, 4, 3), slots=slots)
    chosen = choose(acting(asked, 1.0, view))
    assert isinstance(chosen, Merged) and chosen.features.isfinite().all()
    before = 0
    for tile, size in enumerate(sizes):
        tokens = torch.arange(before, before + size)
        signals = {name: need.take(view[name], tokens) for name, need in asked.needs(LLAVA).items()}
        alone = merged_by(asked, view.part(tokens, max(1, size - 1), signals))
        own = view.frames[chosen.anchors] == tile
        assert torch.equal(chosen.anchors[own] - before, alone.anchors)
        assert torch.equal(chosen.features[own], alone.features)
        before += size


@pytest.mark.parametrize("asked", [a for a in ALL if getattr(a, "score_dtype", "float32") == "float32"], ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_signals_count_as_the_numbers_they_are(asked: Method, dtype: torch.dtype) -> None:
    half, whole = (shown_with_text(asked, n=60, keep=17, grid=Grid(6, 10), dtype=dtype) for _ in range(2))
    whole.signals = {
        name: signal.float()
        if isinstance(signal, Tensor)
        else type(signal)(*[part.float() if isinstance(part, Tensor) else part for part in signal])
        for name, signal in half.signals.items()
    }
    a, b = asked.select(half), asked.select(whole)
    if isinstance(a, Merged) and isinstance(b, Merged):
        assert torch.equal(a.features, b.features) and torch.equal(a.anchors, b.anchors)
    else:
        assert isinstance(a, Tensor) and isinstance(b, Tensor) and torch.equal(a, b)


@pytest.mark.parametrize("asked", [*ALL, *OFFICIAL], ids=format_method)
def test_one_look_does_not_change_the_signals(asked: Method) -> None:
    view, untouched = (shown_with_text(asked, n=60, keep=20, grid=Grid(6, 10)) for _ in range(2))
    asked.select(view)
    for name, signal in view.signals.items():
        assert torch.equal(*(s if isinstance(s, Tensor) else s[0] for s in (signal, untouched[name])))


@pytest.mark.parametrize("asked", [CDPruner(), Trim(), Recoverable()], ids=format_method)
@pytest.mark.parametrize("kind", ["constant", "zero"])
def test_an_image_of_one_colour_keeps_its_first_tokens(asked: Method, kind: str) -> None:
    for clip in (True, False):
        for texts in (0, 3):
            chosen = asked.select(shown_with_text(asked, clip, n=40, keep=7, kind=kind, texts=texts))
            anchors = chosen.anchors if isinstance(chosen, Merged) else chosen
            assert anchors.tolist() == list(range(7))


@pytest.mark.parametrize("cls", [Trim, CDPruner, Recoverable])
def test_a_method_says_what_it_is(cls: type[Method]) -> None:
    assert cls.summary and "\n" not in cls.summary and len(cls.summary) < 110
    assert cls.stage == "vision" and cls().exact and cls().decoder_layer(LLAVA) is None
    assert [cls().positions(info) for info in (LLAVA, NEXT, QWEN)] == ["compact", "compact", "original"]
    for heading in ("Paper:", "Formula:", "Defaults:", "Args:", "Differences from the authors' code:"):
        assert heading in (cls.__doc__ or ""), heading
    assert all(not asked.exact for asked in (*OFFICIAL, *ADAPTIVE))


@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (Trim, {"adaptive": 1}),
        (Trim, {"metric": "euclid"}),
        (Trim, {"relevance_sign": 0}),
        (Trim, {"compat": None}),
        (CDPruner, {"theta": 1.0}),
        (CDPruner, {"theta": -0.1}),
        (CDPruner, {"theta": True}),
        (CDPruner, {"relevance_sign": "-"}),
        (CDPruner, {"score_dtype": "float8"}),
        (Recoverable, {"adaptive": None}),
        (Recoverable, {"relevance_sign": None}),
        (Recoverable, {"compat": "theirs"}),
    ],
)
def test_a_wrong_option_is_one_sentence(cls: type[Method], options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=rf"^{cls.name}: {next(iter(options))}=.* must be .*\.$"):
        cls(**options)


def test_what_each_reads() -> None:
    assert Trim().needs(LLAVA) == {"rows": TowerFeatures(), "aligned": Alignment(truncate=True)}
    assert CDPruner().needs(QWEN) == {"features": Features(), "aligned": Alignment()}
    assert Recoverable().needs(LLAVA) == {
        "attention": ClsAttention(-1, joined=True),
        "keys": EncoderKeys(-1, joined=True),
        "rows": TowerFeatures(),
        "aligned": Alignment(truncate=True),
    }


def recipe_of(method: Method, keep: float | int) -> Recipe:
    return Recipe((Stage(method, keep),))


@torch.no_grad()
@pytest.mark.parametrize("method", [Trim(), Recoverable()], ids=format_method)
@pytest.mark.parametrize("row", [0, 1])
def test_merged_rows_of_the_tower_are_projected_on_llava(method: Method, row: int) -> None:
    model, inputs = built("llava"), alone("llava", RAGGED, row)
    with vlmprune.prune(model, recipe_of(method, 12), text_tower=tower()) as session:
        session.question = QUESTION
        tokens, logits = generate(model, inputs)
    adapter, images = adapter_for(model), []
    for picture in inputs["pixel_values"]:
        last = model.model.vision_tower.encoder.layers[-1]
        states = model.model.vision_tower(picture[None], output_hidden_states=True).hidden_states
        rows, normed = states[-2][0, 1:], last.layer_norm1(states[-2][0])  # the last layer reads what is projected
        query, keys = last.self_attn.q_proj(normed), last.self_attn.k_proj(normed)
        scores = (query[0] @ keys.T / 32**0.5).softmax(-1)[1:]
        signals = {
            "rows": TowerRows(rows, None),
            "aligned": Aligned(tower().visual(rows), tower().text(QUESTION), True),
            "attention": scores,
            "keys": TowerRows(keys[1:], None),
        }
        merged = merged_by(method, ImageView(12, torch.arange(36), Grid(6, 6), adapter.info, signals))
        images.append((model.model.multi_modal_projector(merged.features), torch.zeros(1, 12).long()))
    embeds, _ = assemble(model, inputs["input_ids"], images, torch.zeros(1, inputs["input_ids"].shape[1]).long())
    counted = torch.arange(embeds.shape[1])[None]
    assert largest(greedy_on_embeddings(model, embeds, counted, tokens[0]), logits[0]) < TOLERANCE


@torch.no_grad()
@pytest.mark.parametrize("method", [CDPruner(), Trim(), Recoverable()], ids=format_method)
@pytest.mark.parametrize("family", ["llava", "llava_next", "qwen3_vl video", "internvl", "llava_onevision", "smolvlm"])
def test_a_batch_is_each_sample_alone_and_the_budget_is_exact(method: Method, family: str) -> None:
    model, inputs = built(family), inputs_of(family, RAGGED)
    own = tower(24 if family == "llava" else 16) if family in ("llava", "llava_next") else None
    with vlmprune.prune(model, recipe_of(method, 7), text_tower=own) as session:
        together = model(**inputs).logits[:, -1]
        tokens = session.last.tokens
        single = torch.cat([model(**alone(family, RAGGED, row)).logits[:, -1] for row in range(2)])
    assert [after for _, after in tokens] == [14, 7]
    assert largest(together, single) < TOLERANCE
