"""TRIM, CDPruner and Recoverable Compression: what each owes its caller, each one's formula, and all of the runtime."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from golden_runners.case import acting
from harness import RAGGED, TOLERANCE, alone, built, generate, inputs_of, largest, oracle
from harness_embeddings import assemble, greedy_on_embeddings
from harness_text import QUESTION, tower
from harness_views import INFOS, KINDS, LLAVA, NEXT, QWEN, WIDTH, cases, image, values
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import vlmprune
from vlmprune.core.errors import UserError
from vlmprune.core.method import Method
from vlmprune.core.recipe import Recipe, Stage, format_method
from vlmprune.core.registry import METHODS
from vlmprune.core.selectors import top_k
from vlmprune.core.signals import Alignment, ClsAttention, EncoderKeys, Features, TowerFeatures
from vlmprune.core.view import Aligned, Grid, ImageView, Merged, TowerRows
from vlmprune.methods.absent import NOT_IMPLEMENTED
from vlmprune.methods.outliers import local_outliers
from vlmprune.methods.relevance import mean_cosine
from vlmprune.methods.vision import recoverable
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


def shown(asked: Method, clip: bool = True, **case: Any) -> ImageView:
    """A view of `test_methods.image`, with the instruction as well."""
    view = image(asked, **case)
    numbers = values(case.get("kind", "noise"), view.n + 9, WIDTH, seed=7 + case.get("seed", 0))
    numbers = numbers.to(case.get("dtype", torch.float32))
    texts = case.get("texts", 6)
    view.signals = {**view.signals, "aligned": Aligned(numbers[9:], numbers[:texts], clip)}
    return view


def of_tensors(keep: int, visual: Tensor, text: Tensor, clip: bool = True, **signals: Any) -> ImageView:
    view = {"aligned": Aligned(visual, text, clip), **signals}
    return ImageView(keep, torch.arange(len(visual)), None, LLAVA, view)


def picked(asked: Method, view: ImageView) -> Tensor:
    chosen = asked.select(view)
    assert isinstance(chosen, Tensor)
    return chosen


def merged_by(asked: Method, view: ImageView) -> Merged:
    merged = asked.select(view)
    assert isinstance(merged, Merged)
    return merged


@st.composite
def more_cases(draw: st.DrawFn) -> dict[str, Any]:
    return {**draw(cases()), "info": draw(st.sampled_from(INFOS)), "clip": draw(st.booleans())}


# ------------------------------------------------------------------ what each owes its caller


@pytest.mark.parametrize("asked", CHOOSING, ids=format_method)
@given(case=more_cases())
@settings(max_examples=60, deadline=None)
def test_exactly_the_budget_in_order_and_again_the_same(asked: Method, case: dict[str, Any]) -> None:
    chosen = picked(asked, shown(asked, **case))
    assert chosen.dtype == torch.long and len(chosen) == case["keep"]
    assert chosen.tolist() == sorted(set(chosen.tolist()))
    assert int(chosen[0]) >= 0 and int(chosen[-1]) < case["n"]
    assert torch.equal(chosen, picked(asked, shown(asked, **case)))


@pytest.mark.parametrize("asked", [*MERGING, *ADAPTIVE], ids=format_method)
@given(case=more_cases())
@settings(max_examples=40, deadline=None)
def test_merged_tokens_are_finite_and_each_has_a_place_of_its_own(asked: Method, case: dict[str, Any]) -> None:
    merged, again = (merged_by(asked, shown(asked, **case)) for _ in range(2))
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
        view = shown(asked, n=80, keep=keep, kind=kind, info=info, grid=Grid(4, 4, 5))
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
    view = shown(asked, n=len(slots), keep=1, grid=Grid(4, 4, 3), slots=slots)
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
    half, whole = (shown(asked, n=60, keep=17, grid=Grid(6, 10), dtype=dtype) for _ in range(2))
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
    view, untouched = (shown(asked, n=60, keep=20, grid=Grid(6, 10)) for _ in range(2))
    asked.select(view)
    for name, signal in view.signals.items():
        assert torch.equal(*(s if isinstance(s, Tensor) else s[0] for s in (signal, untouched[name])))


@pytest.mark.parametrize("asked", [CDPruner(), Trim(), Recoverable()], ids=format_method)
@pytest.mark.parametrize("kind", ["constant", "zero"])
def test_an_image_of_one_colour_keeps_its_first_tokens(asked: Method, kind: str) -> None:
    for clip in (True, False):
        for texts in (0, 3):
            chosen = asked.select(shown(asked, clip, n=40, keep=7, kind=kind, texts=texts))
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


def test_methods_that_are_not_here_say_why() -> None:
    for name, reason in NOT_IMPLEMENTED.items():
        assert name not in METHODS and re.fullmatch(r"[A-Z][^\n]*[^.\n]\.", reason)


# ------------------------------------------------------------------ relevance


def test_the_mean_of_cosines() -> None:
    visual, text = values("noise", 30, WIDTH), values("noise", 5, WIDTH, seed=1)
    expected = torch.cosine_similarity(visual[:, None], text[None], dim=-1).mean(1)
    torch.testing.assert_close(mean_cosine(Aligned(visual, text, True)), expected)
    assert mean_cosine(Aligned(visual, text[:0], True)).tolist() == [0] * 30
    assert mean_cosine(Aligned(visual[:1].repeat(99, 1), text, True)).unique().numel() == 1


class TestTrim:
    def naive(self, view: ImageView, scores: Tensor) -> tuple[list[int], Tensor]:
        order = sorted(range(view.n), key=lambda i: (-float(scores[i]), i))
        kept, rest = sorted(order[: view.keep - 1]), sorted(order[view.keep - 1 :])
        rows = view["rows"].rows
        return [*kept, order[view.keep - 1]], torch.stack([*rows[kept], rows[rest].mean(0)])

    @pytest.mark.parametrize(("n", "keep"), [(60, 20), (9, 1), (9, 2), (30, 29), (2, 1)])
    @pytest.mark.parametrize("clip", [True, False])
    def test_the_top_in_order_of_position_and_the_mean_of_the_rest_last(self, n: int, keep: int, clip: bool) -> None:
        view = shown(Trim(), clip, n=n, keep=keep)
        visual, text, _ = view["aligned"]
        scores = -(visual @ text.T).mean(1) if clip else torch.cosine_similarity(visual[:, None], text, dim=-1).mean(1)
        anchors, features = self.naive(view, scores)
        merged = merged_by(Trim(), view)
        assert merged.anchors.tolist() == anchors
        torch.testing.assert_close(merged.features, features)

    def test_metric_and_sign_are_the_users(self) -> None:
        view = shown(Trim(), n=60, keep=20)
        visual, text, _ = view["aligned"]
        cosine = torch.cosine_similarity(visual[:, None], text, dim=-1).mean(1)
        dot = (visual @ text.T).mean(1)
        for metric, found in (("cosine", cosine), ("dot", dot)):
            for sign in (1, -1):
                similarity = Trim(metric=metric, relevance_sign=sign).similarity(view)
                torch.testing.assert_close(similarity, sign * found)
        assert torch.equal(Trim().similarity(view), Trim(metric="dot", relevance_sign=-1).similarity(view))

    @pytest.mark.parametrize("outliers", [0, 1, 9, 40])
    def test_adaptive_counts_what_stands_out(self, outliers: int) -> None:
        scores = torch.linspace(0, 0.1, 576)
        scores[torch.arange(outliers) * 11] += 3 + torch.arange(outliers) / 99
        view = of_tensors(5, -scores[:, None], torch.ones(1, 1), rows=TowerRows(values("noise", 576, WIDTH), None))
        merged = merged_by(Trim(adaptive=True), view)
        expected = (torch.arange(outliers) * 11).tolist()
        assert merged.anchors.tolist()[:-1] == expected and len(merged.features) == outliers + 1
        assert int(merged.anchors[-1]) == 575  # the most relevant of the others

    def test_official_loses_a_token_to_rounding(self) -> None:
        for n, keep, kept in ((22, 16, 15), (576, 118, 118), (100, 30, 29)):
            view = shown(Trim(), n=n, keep=keep)
            assert len(merged_by(Trim(compat="official"), view).features) == kept
            assert len(merged_by(Trim(), view).features) == keep

    def test_on_qwen_tokens_stand_in_their_order(self) -> None:
        ours, theirs = (merged_by(Trim(), shown(Trim(), n=50, keep=6, info=info)) for info in (QWEN, LLAVA))
        order = theirs.anchors.argsort()
        assert torch.equal(ours.anchors, theirs.anchors[order]) and torch.equal(ours.features, theirs.features[order])


# ------------------------------------------------------------------ CDPruner


def greedy_map(features: Tensor, relevance: Tensor, keep: int) -> list[int]:
    """The definition: at each step the token that makes the kernel's determinant largest, from the kernel itself."""
    unit = torch.nn.functional.normalize(features.double(), dim=1)
    kernel = relevance[:, None] * (unit @ unit.T) * relevance
    picks: list[int] = []
    for _ in range(keep):
        free = [i for i in range(len(features)) if i not in picks]
        volumes = [float(torch.logdet(kernel[[*picks, i]][:, [*picks, i]])) for i in free]
        picks.append(free[volumes.index(max(volumes))])
    return picks


class TestCDPruner:
    def relevance(self, aligned: Aligned, sign: int) -> Tensor:
        cosine = sign * torch.cosine_similarity(aligned.visual[:, None], aligned.text, dim=-1).mean(1).double()
        return (cosine - cosine.min() + 1e-6) / (cosine.max() - cosine.min())

    @pytest.mark.parametrize("seed", range(3))
    def test_it_is_the_definition(self, seed: int) -> None:
        view = shown(CDPruner(), n=30, keep=11, seed=seed)
        relevance = self.relevance(view["aligned"], -1)
        expected = greedy_map(view["features"], relevance, 11)
        assert torch.cat(CDPruner().picks(view)).tolist() == expected
        assert picked(CDPruner(), view).tolist() == sorted(expected)

    def test_the_first_pick_is_the_most_relevant_token(self) -> None:
        for clip in (True, False):
            view = shown(CDPruner(), clip, n=60, keep=9)
            relevance = self.relevance(view["aligned"], -1 if clip else 1)
            assert int(CDPruner().picks(view)[0][0]) == int(relevance.argmax())

    @pytest.mark.parametrize("theta", [0.1, 0.5, 0.9])
    @pytest.mark.parametrize("clip", [True, False])
    def test_theta_weighs_relevance_against_diversity(self, theta: float, clip: bool) -> None:
        view = shown(CDPruner(), clip, n=30, keep=9)
        weight = torch.exp(theta / (2 - 2 * theta) * self.relevance(view["aligned"], -1 if clip else 1))
        expected = greedy_map(view["features"], weight, 9)
        assert torch.cat(CDPruner(theta=theta).picks(view)).tolist() == expected

    def test_without_a_text_tower_theta_is_half(self) -> None:
        view = shown(CDPruner(), False, n=60, keep=11)
        assert torch.equal(picked(CDPruner(), view), picked(CDPruner(theta=0.5), view))
        view = shown(CDPruner(), True, n=60, keep=11)
        assert not torch.equal(picked(CDPruner(), view), picked(CDPruner(theta=0.5), view))

    def test_where_the_rank_is_used_up_the_most_relevant_fill_the_budget(self) -> None:
        view = shown(CDPruner(), n=60, keep=30)
        picks = torch.cat(CDPruner().picks(view)).tolist()
        assert WIDTH == 12  # dimensions of the features: the rank
        relevance = CDPruner().relevance(view)
        left = [i for i in top_k(relevance, 60).tolist() if i not in picks[:12]]
        assert picks[12:] == left[:18]

    def test_of_duplicates_one_is_diverse(self) -> None:
        features = torch.eye(WIDTH).repeat_interleave(5, 0)
        visual = torch.cat([torch.ones(60, 1), torch.arange(60).float()[:, None] / 60], dim=1)
        view = of_tensors(15, visual, torch.tensor([[0.0, -1.0]]), features=features)
        picks = torch.cat(CDPruner().picks(view)).tolist()
        assert picks[:12] == list(range(59, 0, -5)) and picks[12:] == [58, 57, 56]

    def test_tiles_pick_by_themselves_with_relevance_over_the_whole_image(self) -> None:
        view = shown(CDPruner(), n=48, keep=15, info=NEXT, grid=Grid(4, 4, 3))
        relevance = self.relevance(view["aligned"], -1)
        picks = CDPruner().picks(view)
        for tile, own in enumerate(picks):
            part = slice(16 * tile, 16 * tile + 16)
            assert (own - 16 * tile).tolist() == greedy_map(view["features"][part], relevance[part], 5)
        together = CDPruner(per="image").picks(view)
        assert together[0][:8].tolist() == greedy_map(view["features"], relevance, 8)
        assert len(CDPruner().picks(shown(CDPruner(), n=48, keep=15, info=QWEN, grid=Grid(4, 4, 3)))) == 1

    def test_features_that_are_not_finite_do_not_break_the_budget(self) -> None:
        view = shown(CDPruner(), n=20, keep=9)
        view["features"][3], view["features"][4] = torch.inf, torch.nan
        view["aligned"].visual[5], view["aligned"].visual[6] = torch.inf, torch.nan
        assert len(picked(CDPruner(), view)) == 9


# ------------------------------------------------------------------ Recoverable Compression


class TestOutliers:
    @pytest.mark.parametrize(
        ("n", "neighbours", "scale", "seed", "count", "tied"),
        [
            (576, 20, 2.0, 1, 10, 7), (576, 10, 2.0, 2, 11, 9), (100, 20, 1.0, 3, 13, 5), (30, 20, 3.0, 4, 9, 1),
            (21, 20, 2.0, 5, 0, 0), (11, 20, 2.0, 6, 0, 0), (5, 10, 4.0, 7, 0, 0), (2, 10, 1.0, 8, 0, 0),
        ],
    )  # fmt: skip
    def test_as_many_as_scikit_learn_finds(
        self, n: int, neighbours: int, scale: float, seed: int, count: int, tied: int
    ) -> None:
        """Counted by LocalOutlierFactor of scikit-learn 1.9.1."""
        assert local_outliers((scale * values("noise", n, seed=seed)).softmax(0), neighbours) == count
        assert local_outliers(values("ties", n, seed=seed), neighbours) == tied

    def test_the_definition(self) -> None:
        values_ = values("noise", 70, seed=3).double()
        apart = (values_[:, None] - values_).abs()
        near = [[j for j in top_k(-apart[i], 70).tolist() if j != i][:20] for i in range(70)]
        reach = [[max(float(apart[i, j]), float(apart[j, near[j][-1]])) for j in near[i]] for i in range(70)]
        density = [1 / (sum(row) / 20 + 1e-10) for row in reach]
        factor = [sum(density[j] for j in near[i]) / 20 / density[i] for i in range(70)]
        assert local_outliers(values_, 20) == sum(f > 1.5 for f in factor) > 0

    def test_nothing_stands_out_alone_or_among_equals(self) -> None:
        assert local_outliers(torch.ones(1), 20) == local_outliers(torch.ones(50), 20) == 0


class TestRecoverable:
    WIDE = 150  # of the tower's rows, by which the authors' code counts centres

    def view(self, n: int = 200, keep: int = 40, info: Any = LLAVA, clip: bool = True) -> ImageView:
        view = shown(Recoverable(), clip, n=n, keep=keep, info=info)
        own = {
            "attention": (2 * values("noise", n, seed=4)).softmax(0),
            "rows": TowerRows(values("noise", n, self.WIDE), None),
        }
        return ImageView(keep, view.slots, None, info, {**view.signals, **own})

    def naive(self, view: ImageView, counts: tuple[int, int, int], key_of: Any) -> tuple[list[int], Tensor]:
        seen, asked, count = counts
        attention, rows, keys = view["attention"], view["rows"].rows, view["keys"].rows
        text = mean_cosine(view["aligned"]) / WIDTH**0.5
        by_attention = top_k(attention, view.n).tolist()
        main = by_attention[:seen]
        main += [i for i in top_k(text, view.n).tolist() if i not in main][:asked]
        rest = [i for i in range(view.n) if i not in main]
        order = [i for i in by_attention if i in rest]
        tokens = [rows[i] for i in sorted(main)]
        for i in order[:count]:
            others = [j for j in rest if j != i]
            likeness = torch.stack(
                [
                    torch.cosine_similarity(keys[key_of(i, rest)], keys[key_of(j, rest)], dim=0) + 50 * text[j]
                    for j in others
                ]
            )
            tokens.append(rows[i] + sum(attention[others[j]] * rows[others[j]] for j in top_k(likeness, 32).tolist()))
        tokens.append(sum(attention[j] * rows[j] for j in order[count:]))
        return sorted(main) + order[: count + 1], torch.stack(tokens)

    def counts(self, view: ImageView, asked: Recoverable) -> tuple[int, int, int]:
        return asked.counts(view["attention"], mean_cosine(view["aligned"]) / WIDTH**0.5, self.WIDE)

    @pytest.mark.parametrize("adaptive", [True, False])
    @pytest.mark.parametrize("compat", ["paper", "official"])
    @pytest.mark.parametrize("clip", [True, False])
    def test_it_is_the_definition(self, adaptive: bool, compat: str, clip: bool) -> None:
        view, asked = self.view(clip=clip), Recoverable(adaptive=adaptive, compat=compat)
        counts = self.counts(view, asked)
        if not adaptive:
            counts = recoverable.within(40, *counts)
        assert min(counts) > 0
        key_of = (lambda i, rest: rest.index(i)) if compat == "official" else (lambda i, rest: i)
        anchors, features = self.naive(view, counts, key_of)
        merged = merged_by(asked, view)
        assert merged.anchors.tolist() == anchors
        torch.testing.assert_close(merged.features, features, rtol=1e-4, atol=1e-5)
        assert adaptive or len(features) == 40

    def test_the_counts_are_outliers(self) -> None:
        view = self.view()
        attention, text = view["attention"], mean_cosine(view["aligned"]) / WIDTH**0.5
        seen, asked, centres = self.counts(view, Recoverable())
        assert seen == local_outliers(attention, 20)
        marked = text.clone()
        marked[top_k(attention, seen)] = text.min()
        assert asked == int((200 - seen) * (local_outliers(marked, 20) / 200))
        rest = recoverable.split(attention, text, seen, asked)[1]
        assert centres == local_outliers(attention[rest], 10) and len(rest) == 200 - seen - asked
        official = self.counts(view, Recoverable(compat="official"))
        assert official == (seen, asked, int(self.WIDE * (centres / len(rest))))

    @given(st.integers(1, 300), st.integers(0, 50), st.integers(0, 50), st.integers(0, 50))
    @settings(max_examples=300, deadline=None)
    def test_a_budget_is_shared_out_in_proportion(self, keep: int, seen: int, asked: int, centres: int) -> None:
        a, b, c = recoverable.within(keep, seen, asked, centres)
        assert min(a, b, c) >= 0 and a + b + c + (c > 0) == keep
        total = max(1, seen + asked + centres)
        assert (c > 0) <= (centres > 0) and (b > 0) <= (asked > 0)
        assert c <= (keep - 1) * centres / total and abs(b - asked / total * keep) <= 2

    def test_without_a_centre_main_tokens_come_alone(self) -> None:
        view = self.view(keep=3)
        merged = merged_by(Recoverable(), view)
        assert torch.equal(merged.features, view["rows"].rows[merged.anchors])

    def test_at_least_one_token_and_official_says_where_theirs_has_none(self) -> None:
        view = self.view()
        view["attention"][:] = 1 / 200
        view.signals = {**view.signals, "aligned": Aligned(torch.ones(200, 2), torch.ones(1, 2), True)}
        assert merged_by(Recoverable(adaptive=True), view).anchors.tolist() == [0]
        with pytest.raises(UserError, match="the authors' code fails: 0 main tokens, 0 centres"):
            Recoverable(adaptive=True, compat="official").select(view)

    def test_official_counts_centres_by_the_width(self) -> None:
        view = self.view(n=60)
        wide = TowerRows(values("noise", 60, 4096), None)
        view.signals = {**view.signals, "rows": wide}
        with pytest.raises(UserError, match=r"the authors' code fails: \d+ main tokens, \d\d+ centres\.$"):
            Recoverable(adaptive=True, compat="official").select(view)
        assert len(merged_by(Recoverable(), view).features) == 40


# ------------------------------------------------------------------ through the runtime


def recipe_of(method: Method, keep: float | int) -> Recipe:
    return Recipe((Stage(method, keep),))


@torch.no_grad()
@pytest.mark.parametrize(("family", "size"), [("llava", 24), ("llava_next", 16), ("qwen2_5_vl", 0), ("internvl", 0)])
def test_cdpruner_equals_the_masking_oracle(family: str, size: int) -> None:
    model, inputs = built(family), inputs_of(family, RAGGED)
    own = tower(size) if size else None
    with vlmprune.prune(model, recipe_of(CDPruner(), 0.3), text_tower=own) as session:
        tokens, logits = generate(model, inputs)
    said = "CLIP text tower" if size else "instruction embeddings"
    assert session.last.text == said and all(after < before for before, after in session.last.tokens)
    policy = {0: CDPruner().positions(adapter_for(model).info)}
    assert largest(logits, oracle(family, RAGGED, inputs, tokens, session.last, policy)) < TOLERANCE


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
