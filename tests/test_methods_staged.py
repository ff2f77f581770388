"""PyramidDrop, SparseVLM, AdaptInfer, VTW, and the clustering that SparseVLM and AutoPrune share."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from golden_runners.case import Case, run
from golden_runners.staged import RUNNERS
from harness import RAGGED, STEPS, TOLERANCE, alone, built, counted, extend, generate, inputs_of, largest, oracle
from harness_staged import ALL, DROPPING, GOLDENS, HYBRID, LLAVA, SIX, merge_by_loops, plain_layer, policies_of, run_on
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import vlmprune
from vlmprune.core.act import Act
from vlmprune.core.budget import Keep
from vlmprune.core.method import Method
from vlmprune.core.plan import acts_of
from vlmprune.core.recipe import Recipe, Stage, format_method
from vlmprune.core.registry import METHODS
from vlmprune.core.view import ImageView, Merged, ModelInfo, Tokens
from vlmprune.fit.withdrawal import find_layer
from vlmprune.methods.cluster import cluster_merge
from vlmprune.methods.decoder.adaptinfer import AdaptInfer
from vlmprune.methods.decoder.pyramiddrop import PyramidDrop
from vlmprune.methods.decoder.sparsevlm import SparseVLM
from vlmprune.methods.decoder.staged import Staged, interpolate, spread
from vlmprune.methods.decoder.vtw import VTW
from vlmprune.methods.vision.divprune import DivPrune
from vlmprune.models import adapter_for
from vlmprune.testing import FAMILIES

QWEN = ModelInfo("qwen2_vl", encoder_layers=32, decoder_layers=28, has_cls=False)
families = pytest.mark.parametrize("family", SIX)
paths = sorted(path for name in RUNNERS for path in (GOLDENS / name).glob("case*.json"))


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("path", paths, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_goldens(path: Path) -> None:
    run(Case(path), RUNNERS[path.parent.name])


# ---------------------------------------------------------------------- clustering


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 10_000), st.booleans())
def test_every_token_is_in_one_cluster_and_each_centre_in_its_own(n: int, count: int, seed: int, alike: bool) -> None:
    made = torch.Generator().manual_seed(seed)
    tokens = torch.randn(n, 6, generator=made)
    if alike:  # many duplicates
        tokens = tokens[torch.randint(max(1, n // 4), (n,), generator=made)]
    found = cluster_merge(tokens, count)
    c = min(n, count)
    assert found.merged.shape == (c, 6) and bool(found.merged.isfinite().all())
    assert len(found.centres.unique()) == c
    assert torch.equal(found.members[found.centres], torch.arange(c))
    for number in range(c):
        assert torch.allclose(found.merged[number], tokens[found.members == number].mean(0), atol=1e-5)
    distance = torch.cdist(tokens, tokens[found.centres], compute_mode="donot_use_mm_for_euclid_dist")
    others = ~torch.isin(torch.arange(n), found.centres)
    assert torch.equal(found.members[others], distance.argmin(1)[others])


def test_clusters_follow_the_tokens_whatever_their_order_and_precision() -> None:
    tokens = torch.randn(30, 8, generator=torch.Generator().manual_seed(1)).half()
    order = torch.randperm(30, generator=torch.Generator().manual_seed(2))
    first, second = cluster_merge(tokens, 4), cluster_merge(tokens[order], 4)
    assert torch.equal(first.centres, order[second.centres])
    assert torch.equal(first.members[order], second.members)
    assert torch.allclose(first.merged, second.merged, atol=1e-6)


def test_two_clumps_of_tokens_are_two_clusters() -> None:
    made = torch.Generator().manual_seed(0)
    clumps = torch.cat([torch.randn(9, 4, generator=made) * 0.1, torch.randn(5, 4, generator=made) * 0.1 + 5])
    found = cluster_merge(clumps, 2)
    assert len(found.members[:9].unique()) == 1 and len(found.members[9:].unique()) == 1
    assert found.members[0] != found.members[-1]


def test_without_noise_the_first_of_equally_dense_tokens_is_the_centre() -> None:
    assert cluster_merge(torch.randn(7, 3, generator=torch.Generator().manual_seed(0)), 1).centres.tolist() == [0]
    pairs = torch.tensor([[0.0], [1.0], [10.0], [11.0]])
    assert cluster_merge(pairs, 2).centres.tolist() == [0, 2]
    tied = torch.ones(4).topk(2).indices  # with noise all four have nothing denser, and are left to topk
    assert cluster_merge(pairs, 2, torch.zeros(4)).centres.tolist() == tied.tolist()


@pytest.mark.parametrize("seed", range(8))
def test_with_noise_equally_prominent_tokens_come_in_the_order_of_topk_as_in_the_authors_code(seed: int) -> None:
    tokens = torch.randn(15, 8, generator=torch.Generator().manual_seed(seed))
    distance = torch.cdist(tokens, tokens, compute_mode="donot_use_mm_for_euclid_dist") / 8**0.5
    density = (-(distance.sort(1).values[:, 1] ** 2) / 2).exp()  # of a token and its nearest, the same for both
    nearer = distance.masked_fill(density[None] <= density[:, None], float(distance.max())).amin(1)
    prominence = density * nearer
    assert int((prominence == prominence.max()).sum()) == 2
    found = cluster_merge(tokens, 2, torch.zeros(()))
    assert found.centres.tolist() == prominence.topk(2).indices.tolist()


# ---------------------------------------------------------------------- schedules and budgets


def counts(method: Method, keep: Keep, total: int, info: ModelInfo = LLAVA) -> list[int]:
    """Tokens kept by each act."""
    left, kept = total, []
    for act in acts_of(method, keep, info):
        left = act.budget(left, total)
        kept.append(left)
    return kept


def layers(method: Method, info: ModelInfo = LLAVA, keep: Keep = 0.5) -> list[int | None]:
    return [act.layer for act in acts_of(method, keep, info)]


def entering(kept: list[int], places: list[Any], total: int, depth: int) -> float:
    """Mean number of tokens that enter a layer."""
    bounds, sizes = [0, *places, depth], [total, *kept]
    return sum(size * (bounds[i + 1] - bounds[i]) for i, size in enumerate(sizes)) / depth


def logged(version: str, keep: Keep) -> float:
    """Mean number of tokens that leave a layer of LLaVA-1.5-7B, recycled ones included."""
    sizes, n = [], 576
    for k in counts(SparseVLM(version=version), keep, 576):
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
        assert counts(SparseVLM(), keep, 576) == kept
        assert counts(SparseVLM(version="+"), keep, 576) == plus
        assert logged("1.5", keep) == pytest.approx(average, abs=0.1)
        assert logged("+", keep) == pytest.approx(average_plus, abs=0.1)
    assert layers(SparseVLM()) == [3, 7, 16] and layers(SparseVLM(version="1.0")) == [3, 7, 16, 20]
    assert counts(SparseVLM(), budget / 576, 1152) == [2 * k for k in kept]


@pytest.mark.parametrize(
    ("budget", "kept"), [(128, [290, 72, 18]), (64, [133, 27, 3]), (48, [80, 24, 2]), (32, [40, 12, 0])]
)
def test_adaptinfer_has_the_papers_lists(budget: int, kept: list[int]) -> None:
    assert counts(AdaptInfer(), budget / 576, 576) == counts(AdaptInfer(), budget, 576) == kept
    assert layers(AdaptInfer()) == [2, 11, 21]
    leaving = [576] + [kept[0]] * 9 + [kept[1]] * 10 + [kept[2]] * 12
    assert sum(leaving) / 32 == pytest.approx(budget, abs=6)


def test_adaptinfer_on_thirteen_billions_and_on_qwen() -> None:
    large = ModelInfo("llava", 24, 40, has_cls=True)
    assert layers(AdaptInfer(), large) == [2, 11, 21]
    assert counts(AdaptInfer(), 128, 576, large) == [300, 94, 30]
    assert counts(AdaptInfer(), 64, 576, large) == [148, 40, 5]
    assert layers(AdaptInfer(), QWEN) == [1, 10, 20]
    assert counts(AdaptInfer(), 0.1, 1000, QWEN) == [170, 102, 30]
    assert counts(AdaptInfer(), 0.5, 1000, QWEN) == [700, 630, 189]


@pytest.mark.parametrize(
    ("keep", "ratio", "kept"),
    [(192 / 576, 0.5596, [322, 180, 100]), (128 / 576, 0.4197, [241, 101, 42]), (64 / 576, 0.1916, [110, 21, 4])],
)
def test_pyramiddrop_on_average_solves_for_lambda(keep: float, ratio: float, kept: list[int]) -> None:
    method = PyramidDrop(average=True)
    assert layers(method) == [2, 8, 16]
    assert method.ratio(keep, [2, 8, 16], 32) == pytest.approx(ratio, abs=1e-4)
    assert counts(method, keep, 576) == counts(method, round(576 * keep), 576) == kept


def test_pyramiddrop_by_default() -> None:
    assert layers(PyramidDrop()) == [8, 16, 24] and layers(PyramidDrop(), QWEN) == [7, 14, 21]
    assert counts(PyramidDrop(), 0.5, 576) == counts(PyramidDrop(), 288, 576) == [288, 144, 72]
    assert counts(PyramidDrop(layers=(4, 20)), 0.7, 100) == [70, 49]
    assert counts(PyramidDrop(), 0.1, 20) == [2, 1, 1]


@given(st.floats(0.08, 0.99), st.integers(4, 80), st.integers(50, 3000))
@settings(max_examples=50, deadline=None)
def test_pyramiddrop_meets_the_average_at_any_depth(keep: float, depth: int, total: int) -> None:
    method, info = PyramidDrop(average=True), ModelInfo("qwen3_vl", 24, depth, has_cls=False)
    places = method.schedule(info)
    if keep <= places[0] / depth:
        with pytest.raises(vlmprune.UserError, match="layers see every token"):
            acts_of(method, keep, info)
        return
    got = entering(counts(method, keep, total, info), list(places), total, depth) / total
    assert abs(got - keep) < 3 / total + 1e-9


@given(st.sampled_from(["1.5", "+", "adaptinfer", "pyramiddrop"]), st.floats(0.001, 0.999), st.integers(1, 1500))
@settings(max_examples=100, deadline=None)
def test_counts_fall_from_act_to_act_and_rise_with_the_budget(name: str, keep: float, total: int) -> None:
    method: Method = {"adaptinfer": AdaptInfer(), "pyramiddrop": PyramidDrop()}.get(name) or SparseVLM(version=name)
    kept = counts(method, keep, total)
    assert kept == sorted(kept, reverse=True) and all(method.least <= k <= total for k in kept)
    assert counts(method, 1.0, total) == [total] * 3
    if name in ("adaptinfer", "pyramiddrop"):  # SparseVLM's lists do not all rise: 303 for 128, then 300 for 192
        assert all(a <= b for a, b in zip(kept, counts(method, min(1.0, keep * 1.3), total), strict=True))


def test_interpolation_meets_the_table_and_lies_between() -> None:
    table = {64: (66.0, 17.0), 128: (300.0, 36.0)}
    assert interpolate(table, 64 / 576, 576) == (66, 17) == interpolate(table, 0.111, 576)
    assert interpolate(table, 96 / 576, 576) == (183, 26.5)
    assert interpolate(table, 32 / 576, 576) == (33, 8.5)
    assert interpolate(table, 1.0, 576) == (576, 576)


def test_layers_spread_over_other_depths() -> None:
    assert spread((3, 7, 16), 32, QWEN) == (3, 6, 14)
    assert [spread((3, 7, 16), 32, ModelInfo("llava", 1, depth, True)) for depth in (1, 2, 3, 5)] == [
        (), (1,), (1, 2), (1, 2, 3),
    ]  # fmt: skip
    # only every fourth layer has an attention map: read before the cut, or at the layer ahead
    assert spread((3, 7, 16), 32, HYBRID) == (4, 8, 16)
    assert spread((8, 16, 24), 32, HYBRID, ahead=True) == (7, 15, 23)


def test_vtw_acts_where_its_budget_or_its_option_says() -> None:
    assert [layers(VTW(), LLAVA, keep) for keep in (0.5, 0.333, 0.01, 0.99, 1.0)] == [[16], [11], [1], [], []]
    assert layers(VTW(layer=20)) == [20]
    with pytest.raises(vlmprune.UserError, match="instead of 64"):
        VTW().acts(LLAVA, 64)
    with pytest.raises(vlmprune.UserError, match="takes no budget"):
        vlmprune.recipe(VTW(layer=16), 0.5)
    with pytest.raises(vlmprune.UserError, match="before decoder layer 40"):
        layers(VTW(layer=40))
    assert str(vlmprune.recipe(VTW(layer=16))) == "vtw@16"


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda: PyramidDrop(layers=(8, 4)), "increasing order"),
        (lambda: PyramidDrop(layers=()), "increasing order"),
        (lambda: PyramidDrop(layers=(0, 4)), "at least 1"),
        (lambda: PyramidDrop(average="yes"), "True or False"),  # type: ignore[arg-type]
        (lambda: SparseVLM(version="2"), "'1.5' or '1.0' or '\\+'"),
        (lambda: SparseVLM(gravity_eps=-1.0), "number from 0"),
        (lambda: SparseVLM(layers=(1, 2, 3, 4)).acts(LLAVA, 0.5), "no schedule for as many as 4"),
        (lambda: PyramidDrop(layers=(8, 50)).acts(LLAVA, 0.5), "before decoder layer 50"),
        (lambda: AdaptInfer().acts(ModelInfo("llava", 1, 1, True), 0.5), "no decoder layer whose attention"),
    ],
)
def test_wrong_options_are_one_sentence(wrong: Any, says: str) -> None:
    with pytest.raises(vlmprune.UserError, match=says) as error:
        wrong()
    assert "\n" not in str(error.value)


def test_recipes_read_as_they_are_written(monkeypatch: pytest.MonkeyPatch) -> None:
    for cls in (PyramidDrop, SparseVLM, AdaptInfer, VTW):
        monkeypatch.setitem(METHODS._targets, cls.name, f"{cls.__module__}:{cls.__name__}")
    assert vlmprune.recipe("pyramiddrop@8,16,24:0.5").stages == (Stage(PyramidDrop(layers=(8, 16, 24)), 0.5),)
    assert vlmprune.recipe("sparsevlm(version=1.0)@3:64").stages == (Stage(SparseVLM(version="1.0", layers=(3,)), 64),)
    assert vlmprune.recipe("vtw@16").stages == (Stage(VTW(layer=16), 1.0),)
    for text in ("pyramiddrop(average=True)@2,8:0.2", "sparsevlm(version=+):0.1", "adaptinfer:64", "vtw@16", "vtw:0.5"):
        assert str(vlmprune.recipe(text)) == text
        assert format_method(vlmprune.recipe(text).stages[0].method) == text.split(":")[0]


# ---------------------------------------------------------------------- selections


def shown(method: Staged, n: int, keep: int, seed: int, words: int = 5, alike: bool = False) -> tuple[Any, ImageView]:
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


STAGED = [PyramidDrop(), AdaptInfer(), SparseVLM(), SparseVLM(version="1.0"), SparseVLM(version="+")]


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(STAGED), st.integers(2, 60), st.integers(0, 9999), st.integers(0, 7), st.booleans(), st.data())
def test_any_image_gives_distinct_sorted_finite_tokens(
    method: Staged, n: int, seed: int, words: int, alike: bool, data: st.DataObject
) -> None:
    keep = data.draw(st.integers(max(1, method.least), n - 1))
    view = shown(method, n, keep, seed, words, alike)
    chosen, again = method.select(view), method.select(view)
    if isinstance(chosen, Merged):
        assert torch.equal(chosen.features, again.features) and bool(chosen.features.isfinite().all())
        assert chosen.unchanged is not None
        kept, made = chosen.anchors[chosen.unchanged], chosen.anchors[~chosen.unchanged]
        recycled = int(0.3 * (n - len(kept))) + 1
        assert len(made) == int(recycled / 10) + 1 and len(chosen.anchors.unique()) == len(chosen.anchors) <= n
        assert torch.equal(chosen.features[: len(kept)], view["states"].visual[kept])
        assert bool((chosen.unchanged.long().diff() <= 0).all())  # the kept first
    else:
        assert torch.equal(chosen, again)
        kept = chosen
    assert kept.tolist() == sorted(set(kept.tolist()))
    if getattr(method, "version", None) != "1.0":
        assert len(kept) == keep
    else:
        assert 1 <= len(kept) <= n


def test_raters_are_the_words_that_match() -> None:
    image, words = torch.eye(4)[:2] * 10, torch.eye(4)[[0, 2, 3]] * 10
    view = shown(SparseVLM(), 2, 1, seed=0, words=3)
    view = ImageView(1, view.slots, None, LLAVA, {**view.signals, "image": image, "text": words})
    assert SparseVLM().raters(view).tolist() == [True, False, False]
    alone = ImageView(1, view.slots, None, LLAVA, {**view.signals, "image": image, "text": words[:1]})
    assert SparseVLM().raters(alone).tolist() == [True]  # nothing exceeds the mean of one


def test_gravity_eps_keeps_gains_from_turning_the_order() -> None:
    view = shown(SparseVLM(version="+"), 6, 2, seed=1)
    view.signals["gain"][:, 0] = -1e-3  # type: ignore[index]
    view.signals["attention"][..., 0] = 0.9  # type: ignore[index]
    assert 0 not in SparseVLM(version="+").select(view)
    assert 0 in SparseVLM(version="+", gravity_eps=0.01).select(view)


def test_version_one_keeps_by_rank() -> None:
    method = SparseVLM(version="1.0")
    view = shown(method, 40, 39, seed=2, words=6)
    rank = int(method.raters(view).sum())
    for keep, scale, bias in ((64 / 576, 0.8, 0), (128 / 576, 9, 6), (192 / 576, 13.5, 0), (96 / 576, 4.9, 3)):
        view = replace(view, act=acts_of(method, keep, LLAVA)[0])
        chosen = method.select(view)
        assert int(chosen.unchanged.sum()) == max(1, min(int(rank * scale + bias), 39))
    full = {**view.signals, "attention": torch.eye(6)[:, :2], "states": Tokens(torch.zeros(2, 8), torch.zeros(6, 8))}
    two = ImageView(1, torch.arange(2), None, LLAVA, {**full, "text": torch.zeros(6, 8), "image": torch.zeros(2, 8)})
    assert method.select(replace(two, act=view.act)).tolist() == [0, 1]  # full rank: nothing goes


# ---------------------------------------------------------------------- the search for VTW's layer


def test_find_layer_is_the_first_that_changes_little() -> None:
    model, batches = built("llava"), [inputs_of("llava", RAGGED), inputs_of("llava", [[3]], seed=5)]
    divergences = []
    with torch.no_grad():
        for layer in range(1, 4):
            values = []
            for batch in batches:
                full = model(**batch).logits[:, -1]
                with vlmprune.prune(model, VTW(layer=layer)):
                    without = model(**batch).logits[:, -1]
                for p, q in zip(full, without, strict=True):
                    loss = torch.nn.KLDivLoss(reduction="batchmean")
                    values.append(float(loss(p.log_softmax(-1)[None], q.softmax(-1)[None])))
            divergences.append(sum(values) / len(values))
    for layer in (1, 2, 3):
        eta = divergences[layer - 1] + 1e-4
        wanted = next(number for number, value in enumerate(divergences, start=1) if value <= eta)
        assert find_layer(model, batches, eta=eta, first=1) == wanted
    assert find_layer(model, batches, eta=100.0, first=2) == 2
    with pytest.warns(UserWarning, match="by more than eta=0"):
        assert find_layer(model, batches, eta=0.0, first=1) == 4


def test_find_layer_says_what_is_wrong() -> None:
    inputs = inputs_of("llava", RAGGED)
    with pytest.raises(vlmprune.UserError, match="first=5 must be a layer from 1 to 3"):
        find_layer(built("llava"), [inputs])
    with pytest.raises(vlmprune.UserError, match="at least one batch"):
        find_layer(built("llava"), [], first=1)
    with pytest.raises(vlmprune.UserError, match="pad on the left"):
        find_layer(built("llava"), [{**inputs, "attention_mask": inputs["attention_mask"].flip(1)}], first=1)


# ---------------------------------------------------------------------- on models


@families
@pytest.mark.parametrize("name", DROPPING)
def test_equals_the_masking_oracle(family: str, name: str) -> None:
    recipe, inputs = Recipe((DROPPING[name],)), inputs_of(family, RAGGED)
    tokens, logits, report = run_on(family, recipe, inputs)
    expected = oracle(family, RAGGED, inputs, tokens, report, policies_of(recipe, family))
    assert largest(logits, expected) < TOLERANCE
    assert largest(logits[:, 0], generate(built(family), inputs)[1][:, 0]) > 50 * TOLERANCE  # it did prune
    assert all(after < before for before, after in report.tokens)


@families
def test_behind_a_stage_before_the_llm_it_equals_the_oracle_too(family: str) -> None:
    recipe, inputs = Recipe((Stage(DivPrune(), 0.6), DROPPING["pyramiddrop"])), inputs_of(family, RAGGED)
    tokens, logits, report = run_on(family, recipe, inputs)
    expected = oracle(family, RAGGED, inputs, tokens, report, policies_of(recipe, family))
    assert largest(logits, expected) < TOLERANCE
    for image, seed in enumerate(RAGGED[0]):  # shares count what the stage before leaves
        counts = [len(kept[0][image]) for _, kept in report.stages]
        first = round(0.6 * FAMILIES[family].slots(seed))
        assert counts == [first, *(max(1, int(first * 0.5**act)) for act in range(1, len(counts)))]


@families
@pytest.mark.parametrize("name", ALL)
def test_cached_equals_uncached(family: str, name: str) -> None:
    model, inputs = built(family), inputs_of(family, RAGGED)
    with vlmprune.prune(model, Recipe((ALL[name],))) as session:
        tokens, logits = generate(model, inputs)
        kept = session.last.kept
        for step in (0, STEPS - 1):
            longer = counted(family, extend(family, inputs, tokens[:, :step]))
            again = model(**longer, use_cache=False, logits_to_keep=step + 1).logits
            assert largest(again[:, -1], logits[:, step]) < TOLERANCE
            assert all(torch.equal(a, b) for x, y in zip(kept, session.last.kept) for a, b in zip(x, y))


@families
@pytest.mark.parametrize("name", ALL)
def test_batch_equals_alone(family: str, name: str) -> None:
    recipe = Recipe((ALL[name],))
    tokens, logits, report = run_on(family, recipe, inputs_of(family, RAGGED))
    for row in range(len(RAGGED)):
        one_tokens, one_logits, one = run_on(family, recipe, alone(family, RAGGED, row))
        assert torch.equal(one_tokens[0], tokens[row])
        assert largest(one_logits[0], logits[row]) < TOLERANCE
        assert all(torch.equal(a, b) for a, b in zip(one.kept[0], report.kept[row], strict=True))


@families
@pytest.mark.parametrize("name", ["pyramiddrop", "adaptinfer", "sparsevlm", "sparsevlm 1.0", "sparsevlm+", "vtw"])
def test_keeping_everything_is_bit_identical(family: str, name: str) -> None:
    inputs = inputs_of(family, RAGGED)
    ids, logits = generate(built(family), inputs)
    pruned_ids, pruned_logits, report = run_on(family, Recipe((Stage(ALL[name].method, 1.0),)), inputs)
    assert torch.equal(ids, pruned_ids) and torch.equal(logits, pruned_logits)
    assert all(before == after for before, after in report.tokens)


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


def test_a_layer_whose_attention_cannot_be_read_is_refused() -> None:
    """Tiny Qwen3.5 has attention maps at layers 1 and 3: by default the acts stand where these are read."""
    info = adapter_for(built("qwen3_5")).info
    assert layers(PyramidDrop(), info) == [1, 3] and layers(SparseVLM(), info) == [2]
    for method in (SparseVLM(layers=(1,)), PyramidDrop(layers=(2,))):
        with pytest.raises(vlmprune.UserError, match="linear attention"):  # before anything runs
            vlmprune.prune(built("qwen3_5"), Recipe((Stage(method, 0.3),)))


@pytest.mark.parametrize("name", ["sparsevlm", "adaptinfer", "pyramiddrop"])
def test_after_a_stage_that_merges_and_frame_by_frame(name: str) -> None:
    stage = ALL[name]
    recipe = Recipe((*vlmprune.recipe("visionzip:12").stages, stage))
    _, _, report = run_on("llava", recipe, inputs_of("llava", RAGGED))
    assert [before for before, _ in report.tokens] == [72, 36] and report.tokens[1][1] < 12
    per_frame: Any = type(stage.method)(per="frame")
    family = "qwen2_5_vl video"
    _, _, report = run_on(family, Recipe((Stage(per_frame, stage.keep),)), inputs_of(family, [[0], [1]]))
    for (kept,), (grid,) in zip(report.stages[0][1], report.grids, strict=True):
        assert grid is not None and grid.frames > 1
        sizes = torch.bincount(kept // (grid.rows * grid.cols), minlength=grid.frames)
        assert int(sizes.max() - sizes.min()) <= 1


def test_a_number_of_tokens_is_a_share_of_each_image() -> None:
    share, number = (
        run_on("llava", Recipe((Stage(SparseVLM(), keep),)), inputs_of("llava", RAGGED))[2] for keep in (0.25, 9)
    )
    for (_, a), (_, b) in zip(share.stages, number.stages, strict=True):
        assert all(torch.equal(x, y) for rows in zip(a, b) for x, y in zip(*rows, strict=True))
