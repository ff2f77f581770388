"""What every method owes its caller, whatever the image: the budget, order, determinism; and each one's formula."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import torch
from harness_views import LLAVA, QWEN, WIDTH, cases, image, values
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vlmprune.core.errors import UserError
from vlmprune.core.method import Method, PixelMethod
from vlmprune.core.needs import USED, Depth
from vlmprune.core.plan import acts_of
from vlmprune.core.recipe import make_method
from vlmprune.core.registry import METHODS
from vlmprune.core.selectors import top_k
from vlmprune.core.signals import (
    ClsAttention,
    DecoderStates,
    EncoderKeys,
    Features,
    ReceivedAttention,
    TextQueryAttention,
    TowerFeatures,
)
from vlmprune.core.view import Grid, ImageView, Merged, ModelInfo, Tokens
from vlmprune.methods.decoder.dart import Dart
from vlmprune.methods.decoder.fastv import FastV
from vlmprune.methods.pixels.downsample import Downsample
from vlmprune.methods.vision.divprune import DivPrune
from vlmprune.methods.vision.hiprune import HiPrune
from vlmprune.methods.vision.random import Random
from vlmprune.methods.vision.visionzip import VisionZip

CHOOSING = ["random", "random@2", "divprune", "hiprune", "fastv", "dart", "visionzip"]


def method(text: str, **options: Any) -> Method:
    name, _, layer = text.partition("@")
    return make_method(name, {**({"layer": int(layer)} if layer else {}), **options})


@pytest.mark.parametrize("text", CHOOSING)
@given(case=cases())
@settings(max_examples=60, deadline=None)
def test_the_budget_is_exact_and_the_result_is_the_same_on_every_run(text: str, case: dict[str, Any]) -> None:
    asked = method(text)
    view = image(asked, **case)
    chosen, again = asked.select(view), asked.select(image(asked, **case))
    if isinstance(chosen, Merged):
        assert isinstance(again, Merged)
        check_merged(chosen, view)
        assert torch.equal(chosen.features, again.features) and torch.equal(chosen.anchors, again.anchors)
    else:
        assert chosen.dtype == torch.long
        assert len(chosen) == view.keep
        assert chosen.tolist() == sorted(set(chosen.tolist()))
        assert int(chosen[0]) >= 0 and int(chosen[-1]) < view.n
        assert torch.equal(chosen, again)


def check_merged(merged: Merged, view: ImageView) -> None:
    anchors = merged.anchors.tolist()
    assert merged.features.shape == (view.keep, WIDTH)
    assert len(anchors) == len(set(anchors)) == view.keep
    assert merged.features.isfinite().all()
    own = [anchor for anchor in anchors if anchor >= 0]
    assert max(own, default=0) < view.n
    if view.info.has_cls:
        assert anchors[0] == -1 and len(own) == view.keep - 1
    else:
        assert anchors == sorted(own)


@pytest.mark.parametrize("text", CHOOSING)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", ["noise", "ties", "constant"])
def test_half_precision_signals_count_as_the_numbers_they_are(text: str, dtype: torch.dtype, kind: str) -> None:
    asked = method(text)
    half = image(asked, 60, 17, kind, grid=Grid(6, 10), dtype=dtype)
    whole = image(asked, 60, 17, kind, grid=Grid(6, 10))
    whole.signals = {name: _as_float(signal) for name, signal in half.signals.items()}
    a, b = asked.select(half), asked.select(whole)
    if isinstance(a, Merged) and isinstance(b, Merged):
        assert torch.equal(a.features, b.features) and torch.equal(a.anchors, b.anchors)
    else:
        assert torch.equal(a, b)


def _as_float(signal: Any) -> Any:
    if isinstance(signal, Tensor):
        return signal.float()
    return type(signal)(*[None if part is None else part.float() for part in signal])


@pytest.mark.parametrize("text", ["divprune", "hiprune", "fastv", "dart"])
@pytest.mark.parametrize("keep", [1, 2, 3, 20, 59])
def test_one_look_does_not_change_the_signals(text: str, keep: int) -> None:
    for compat in ("paper", "official") if text != "fastv" else ("paper",):
        asked = method(text, **({"compat": compat} if text != "fastv" else {}))
        view = image(asked, 60, keep, grid=Grid(6, 10), info=QWEN)
        before = torch.cat(
            [torch.cat([*s]).flatten() if isinstance(s, tuple) else s.flatten() for s in view.signals.values()]
        )
        asked.select(view)
        after = torch.cat(
            [torch.cat([*s]).flatten() if isinstance(s, tuple) else s.flatten() for s in view.signals.values()]
        )
        assert torch.equal(before, after)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_method_says_what_it_is(name: str) -> None:
    cls = METHODS[name]
    assert cls.name == name
    assert cls.summary and "\n" not in cls.summary and len(cls.summary) < 110
    assert set(cls.stage.split(", ")) <= {"pixels", "vision", "decoder"}
    assert cls().exact or cls.budget_means  # where the image decides, a budget is no count
    for info in (LLAVA, QWEN):
        assert cls().positions(info) in ("original", "compact")
        for act in acts_of(cls(), 0.5, info):
            assert (act.layer is None) == (cls.stage != "decoder")
    for heading in ("Paper:", "Formula:", "Defaults"):
        assert heading in (cls.__doc__ or ""), heading
    rebuilt = "reconstruction" in (cls.__doc__ or "") and "Ours, where the sources say nothing" in (cls.__doc__ or "")
    assert (
        "Paper: none" in (cls.__doc__ or "") or rebuilt or "Differences from the authors' code" in (cls.__doc__ or "")
    )


def test_methods_before_the_llm_number_positions_as_their_authors_do() -> None:
    for text in ("random", "divprune", "hiprune", "visionzip"):
        assert method(text).positions(LLAVA) == "compact"
        assert method(text).positions(QWEN) == "original"
    for text in ("random@2", "fastv", "dart"):
        assert method(text).positions(LLAVA) == method(text).positions(QWEN) == "original"


class TestRandom:
    def test_it_draws_every_token_about_equally_often(self) -> None:
        seen: Counter[int] = Counter()
        for seed in range(2000):
            seen.update(Random().select(image(Random(), 20, 5, seed=seed)).tolist())
        # 2000 draws of 5 in 20: 500 each, standard deviation 19.4
        assert all(abs(seen[token] - 500) < 5 * 19.4 for token in range(20))

    def test_the_seed_decides_and_nothing_else(self) -> None:
        first = Random().select(image(Random(), 50, 10, seed=3))
        torch.manual_seed(1)
        assert torch.equal(first, Random(layer=2).select(image(Random(), 50, 10, "constant", seed=3)))
        assert not torch.equal(first, Random().select(image(Random(), 50, 10, seed=4)))

    def test_it_acts_where_it_is_told(self) -> None:
        assert Random().decoder_layer(LLAVA) is None
        assert Random(layer=31).decoder_layer(LLAVA) == 31
        with pytest.raises(UserError, match="layers 0 to 31"):
            Random(layer=32).decoder_layer(LLAVA)
        for wrong in (0, -1, True, 1.5, "2"):
            with pytest.raises(UserError, match="layer="):
                Random(layer=wrong)  # type: ignore[arg-type]


class TestDownsample:
    def test_a_square_stays_square(self) -> None:
        assert Downsample().resize(Grid(14, 14), 65) == Grid(8, 8)
        assert Downsample().resize(Grid(14, 14), 43) == Grid(6, 7)
        assert Downsample().resize(Grid(24, 24), 64) == Grid(8, 8)

    def test_a_wide_image_stays_wide_and_a_tall_one_tall(self) -> None:
        assert Downsample().resize(Grid(10, 20), 50) == Grid(5, 10)
        assert Downsample().resize(Grid(20, 10), 50) == Grid(10, 5)
        assert Downsample().resize(Grid(1, 40), 10) == Grid(1, 10)

    def test_a_video_shares_the_budget_between_its_frames(self) -> None:
        assert Downsample().resize(Grid(14, 14, 4), 260) == Grid(8, 8, 4)
        assert Downsample().resize(Grid(14, 14, 4), 3) == Grid(1, 1, 4)

    @given(rows=st.integers(1, 24), cols=st.integers(1, 24), keep=st.integers(1, 600))
    @settings(max_examples=200, deadline=None)
    def test_it_is_the_best_of_all_grids_that_fit(self, rows: int, cols: int, keep: int) -> None:
        grid = Downsample().resize(Grid(rows, cols), keep)
        assert 1 <= grid.rows <= rows and 1 <= grid.cols <= cols and grid.size <= keep
        if keep >= rows * cols:
            assert grid == Grid(rows, cols)
            return
        height = math.sqrt(keep * rows / cols)
        width = keep / height

        def misfit(r: int, c: int) -> float:
            return abs(math.log(r / height)) + abs(math.log(c / width))

        best = min(misfit(r, c) for r in range(1, rows + 1) for c in range(1, cols + 1) if r * c <= keep)
        assert misfit(grid.rows, grid.cols) <= best + 1e-9


class TestDivPrune:
    def naive(self, features: Tensor, keep: int, dtype: torch.dtype) -> list[int]:
        """The definition: the first pick by the second smallest entry, then all picked rows anew at each step."""
        x = features.to(dtype)
        unit = x / x.norm(dim=1, keepdim=True)
        distance = 1.0 - unit @ unit.T
        picks = [int(distance.topk(2, dim=0, largest=False).values[1].argmax())]
        while len(picks) < keep:
            nearest = distance[picks].min(0).values
            nearest[picks] = -1
            picks.append(int(nearest.argmax()))
        return picks

    @pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
    @pytest.mark.parametrize(("n", "keep"), [(2, 1), (7, 4), (100, 1), (100, 37), (256, 255), (300, 300)])
    def test_the_running_minimum_gives_the_greedy_order(self, dtype: str, n: int, keep: int) -> None:
        asked = DivPrune(score_dtype=dtype)
        view = image(asked, n, keep, seed=n)
        assert asked.picks(view).tolist() == self.naive(view["features"], keep, getattr(torch, dtype))

    def test_it_takes_one_of_each_cluster_first(self) -> None:
        centres = torch.eye(6, WIDTH)
        features = centres.repeat_interleave(5, 0) + 0.01 * values("noise", 30, WIDTH)
        view = image(DivPrune(), 30, 6)
        view.signals = {"features": features}
        assert sorted((DivPrune().select(view) // 5).tolist()) == [0, 1, 2, 3, 4, 5]

    def test_official_repeats_a_token_among_duplicates_and_the_default_does_not(self) -> None:
        official = DivPrune(compat="official")
        view = image(official, 40, 30, "duplicates")
        distinct = len(view["features"].unique(dim=0))
        assert distinct < 30
        assert len(official.picks(view)) == 30 and len(official.select(view)) == distinct
        assert not official.exact
        assert DivPrune().picks(view)[:distinct].tolist() == official.picks(view)[:distinct].tolist()
        assert len(DivPrune().select(view)) == 30

    def test_features_that_are_not_finite_do_not_break_the_budget(self) -> None:
        view = image(DivPrune(), 20, 9)
        view["features"][3] = math.inf
        view["features"][4] = math.nan
        assert len(DivPrune().select(view)) == 9


class TestHiPrune:
    def view(self, anchor: int, keep: int, grid: Grid, slots: Tensor | None = None) -> ImageView:
        """One anchor, and registers preferred from the end of the image."""
        n = grid.size if slots is None else len(slots)
        middle, deep = torch.zeros(n), torch.arange(n).float()
        middle[anchor] = 1
        slots = torch.arange(n) if slots is None else slots
        return ImageView(keep, slots, grid, LLAVA, {"object": middle, "deep": deep})

    @pytest.mark.parametrize(
        ("anchor", "near"),
        [
            (5, [1, 4, 5, 6, 9]),  # inside a 3 x 4 grid
            (7, [3, 6, 7, 8, 11]),  # the end of a row neighbours the start of the next
            (0, [0, 1, 4]),  # beyond the image counts as its first cell
            (2, [0, 1, 2, 3, 6]),
            (10, [6, 9, 10, 11]),
            (11, [7, 10, 11]),
        ],
    )
    def test_neighbours_are_found_by_arithmetic(self, anchor: int, near: list[int]) -> None:
        got, registers = HiPrune(alpha=0.8).parts(self.view(anchor, 6, Grid(3, 4)))
        assert got.tolist() == near
        assert registers.tolist() == [t for t in range(11, -1, -1) if t not in near][: 6 - len(near)]

    def test_dropped_tokens_are_no_neighbours(self) -> None:
        slots = torch.tensor([0, 1, 5, 6, 9, 11])
        got, registers = HiPrune(alpha=1).parts(self.view(2, 5, Grid(3, 4), slots))
        assert got.tolist() == [1, 2, 3, 4]  # slots 1, 5, 6, 9; slot 4 is gone
        assert registers.tolist() == [5]

    def test_frames_of_a_video_are_no_neighbours_of_each_other(self) -> None:
        got, _ = HiPrune(alpha=0.5).parts(self.view(9, 10, Grid(3, 3, 2)))
        assert got.tolist() == [9, 10, 12]

    def test_without_a_grid_only_left_and_right_are_neighbours(self) -> None:
        view = self.view(5, 6, Grid(3, 4))
        view.grid = None
        assert HiPrune(alpha=0.8).parts(view)[0].tolist() == [4, 5, 6]

    def test_anchors_come_first_where_neighbours_exceed_the_budget(self) -> None:
        view = image(HiPrune(), 64, 13, grid=Grid(8, 8))
        near, registers = HiPrune(alpha=1).parts(view)
        assert set(top_k(view["object"], 3).tolist()) <= set(near.tolist())
        assert len(near) + len(registers) == 13

    def test_official_refuses_neighbours_beyond_the_budget(self) -> None:
        view = self.view(9, 5, Grid(4, 5))  # an anchor with its four neighbours fits
        assert len(HiPrune(alpha=1, compat="official").select(view)) == 5
        view.keep = 4
        with pytest.raises(UserError, match="fails on 5 anchors and neighbours in a budget of 4"):
            HiPrune(alpha=1, compat="official").select(view)
        assert len(HiPrune(alpha=1).select(view)) == 4

    def test_no_anchor_below_half_a_neighbourhood(self) -> None:
        view = image(HiPrune(), 64, 25, grid=Grid(8, 8))
        assert torch.equal(HiPrune().select(view), top_k(view["deep"], 25).sort().values)  # round(0.5) is 0

    def test_the_object_layer_is_the_papers_at_every_depth(self) -> None:
        assert HiPrune().needs(LLAVA) == {"object": ReceivedAttention(Depth(9, 24)), "deep": ReceivedAttention(USED)}
        assert HiPrune().needs(QWEN)["object"] == ReceivedAttention(Depth(16, 32))
        assert Depth(9, 24).index(24) == 8 and Depth(9, 24).index(5) == 1
        assert Depth(16, 32).index(32, (7, 15, 23, 31)) == 15
        assert HiPrune(object_layer=4).needs(LLAVA)["object"] == ReceivedAttention(4)
        with pytest.raises(UserError, match="layers 0 to 23"):
            HiPrune(object_layer=24).needs(LLAVA)

    def test_official_loses_tokens_where_sums_exceed_one(self) -> None:
        view = image(HiPrune(), 64, 30, info=QWEN, grid=Grid(8, 8))
        view["deep"][top_k(view["object"], 3)] = 50.0  # the anchors are also what the last layer looks at
        official = HiPrune(alpha=0.5, compat="official")
        assert len(official.select(view)) < 30 and not official.exact
        assert len(HiPrune(alpha=0.5).select(view)) == 30


class TestVisionZip:
    @pytest.mark.parametrize("info", [LLAVA, QWEN])
    @pytest.mark.parametrize(("keep", "contextual"), [(1, 0), (2, 0), (3, 0), (4, 1), (64, 10), (128, 20), (192, 30)])
    def test_ten_of_64_are_contextual(self, info: ModelInfo, keep: int, contextual: int) -> None:
        view = image(VisionZip(), 576, keep, info=info)
        assert len(VisionZip().clusters(view).targets) == contextual
        check_merged(VisionZip().select(view), view)

    def test_at_least_one_token_stays_dominant(self) -> None:
        for contextual in (8, 50, 1.0):
            view = image(VisionZip(), 40, 8)
            parts = VisionZip(contextual=contextual).clusters(view)
            assert parts.dominant.tolist() == [0] and len(parts.targets) == 7

    def test_targets_are_spread_over_the_rest_and_everything_else_joins_one(self) -> None:
        view = image(VisionZip(), 30, 12)
        parts = VisionZip(contextual=4).clusters(view)
        rest = sorted(set(range(31)) - set(parts.dominant.tolist()))
        assert parts.targets.tolist() == rest[:: len(rest) // 4][:4]
        assert sorted(parts.targets.tolist() + parts.members.tolist()) == rest
        keys = torch.cat([view["keys"].cls, view["keys"].rows])
        for member, target in zip(parts.members, parts.assignment):
            likeness = torch.cosine_similarity(keys[member], keys[parts.targets], dim=-1)
            assert int(likeness.argmax()) == int(target)

    @pytest.mark.parametrize("info", [LLAVA, QWEN])
    def test_a_contextual_token_is_its_target_plus_the_mean_of_its_members(self, info: ModelInfo) -> None:
        view = image(VisionZip(), 30, 12, info=info)
        merged, parts = VisionZip(contextual=4).select(view), VisionZip(contextual=4).clusters(view)
        rows = view["rows"].rows if info is QWEN else torch.cat([view["rows"].cls, view["rows"].rows])
        shift = len(rows) - 30
        place = {anchor + shift: feature for anchor, feature in zip(merged.anchors.tolist(), merged.features)}
        for row in parts.dominant.tolist():
            assert torch.equal(place[row], rows[row])
        for number, target in enumerate(parts.targets.tolist()):
            members = rows[parts.members[parts.assignment == number]]
            wanted = rows[target] + (members.mean(0) if len(members) else 0)
            torch.testing.assert_close(place[target], wanted)

    def test_cls_then_dominant_then_contextual(self) -> None:
        view = image(VisionZip(), 30, 12)
        anchors = VisionZip(contextual=4).select(view).anchors.tolist()
        assert anchors[0] == -1
        assert anchors[1:8] == sorted(top_k(view["attention"], 7).tolist())
        assert anchors[8:] == sorted(anchors[8:])


class TestFastV:
    def test_ties_go_to_the_earlier_token(self) -> None:
        view = image(FastV(), 6, 3)
        view.signals = {"attention": torch.tensor([0.1, 0.3, 0.2, 0.2, 0.2, 0.1])}
        assert FastV().select(view).tolist() == [1, 2, 3]

    def test_it_acts_before_layer_two_and_not_beyond_the_decoder(self) -> None:
        assert FastV().decoder_layer(LLAVA) == 2

    def test_all_text_may_ask_instead_of_the_last_token(self) -> None:
        asked, rows = FastV(query="all_text"), torch.tensor([[0.5, 0.1, 0.0, 0.0], [0.0, 0.1, 0.3, 0.0]])
        assert asked.needs(LLAVA) == {"attention": TextQueryAttention()}
        view = ImageView(2, torch.arange(4), None, LLAVA, {"attention": rows})
        assert asked.select(view).tolist() == [0, 2]
        view = ImageView(2, torch.arange(4), None, LLAVA, {"attention": rows[:0]})  # no text after the image
        assert asked.select(view).tolist() == [0, 1]
        with pytest.raises(UserError, match="query='mean' must be 'last' or 'all_text'"):
            FastV(query="mean")
        with pytest.raises(UserError, match="layers 0 to 27"):
            FastV(layer=28).decoder_layer(QWEN)


def budget(asked: Method, keep: float | int, n: int) -> int:
    return acts_of(asked, keep, LLAVA)[0].budget(n, n)


class TestUniPruneBench:
    """Its versions of methods inside the LLM, for reproduction: golden runners have the selections themselves."""

    @pytest.mark.parametrize("cls", [Random, FastV, Dart])
    def test_shares_are_rounded_down_and_internvl_is_numbered_anew(self, cls: type[Random | FastV | Dart]) -> None:
        asked = cls(layer=2, compat="uniprune")
        assert budget(asked, 0.333, 576) == 191 and budget(cls(layer=2), 0.333, 576) == 192
        assert budget(asked, 0.1, 3) == 1 and budget(asked, 64, 576) == 64
        kin = {family: ModelInfo(family, 24, 32, False) for family in ("internvl", "qwen2_5_vl")}
        assert [asked.positions(info) for info in kin.values()] == ["compact", "original"]
        assert cls(layer=2).positions(kin["internvl"]) == "original"

    def test_dart_keeps_as_many_as_fifteen_pivots_make(self) -> None:
        asked = Dart(image_pivots=10, text_pivots=5, compat="uniprune")
        assert not asked.exact and asked.needs(LLAVA)["states"] == DecoderStates(norm="next")
        view = image(asked, 576, budget(asked, 0.333, 576))
        assert len(asked.select(view)) == 12 * 15 + 10


class TestDart:
    def test_it_drops_duplicates_of_a_pivot(self) -> None:
        asked = Dart(image_pivots=1, text_pivots=0)
        kinds = torch.eye(WIDTH)[torch.tensor([0, 0, 0, 1, 2, 0, 3])]
        lengths = torch.tensor([1.0, 5, 1, 1, 1, 1, 1])[:, None]
        nothing = torch.zeros(0, WIDTH)
        view = image(asked, 7, 4)
        view.signals = {"keys": Tokens(kinds * lengths, nothing), "states": Tokens(kinds, nothing)}
        assert asked.select(view).tolist() == [1, 3, 4, 6]

    def test_each_pivot_has_its_quota_and_the_last_gets_what_is_left(self) -> None:
        view = image(Dart(), 576, 128)
        assert [len(added) for added in Dart().rounds(view)] == [4, *[16] * 7, 12]
        official = Dart(compat="official")
        assert [len(added) for added in official.rounds(view)] == [4, *[16] * 8]
        assert len(official.select(view)) == 132 and not official.exact

    def test_pivots_take_turns_in_order_of_position(self) -> None:
        assert Dart().order(torch.tensor([9, 2]), torch.tensor([5, 1]), n=100) == [2, 9, 101, 105]

    def test_image_pivots_stay_even_where_the_budget_is_smaller(self) -> None:
        view = image(Dart(), 50, 3)
        assert Dart().select(view).tolist() == sorted(top_k(view["keys"].visual.norm(p=1, dim=-1), 3).tolist())

    def test_official_keeps_all_pivots_of_a_smaller_budget(self) -> None:
        view, official = image(Dart(), 50, 3), Dart(compat="official")
        assert official.select(view).tolist() == sorted(top_k(view["keys"].visual.norm(p=1, dim=-1), 4).tolist())

    @pytest.mark.parametrize("texts", [0, 1, 3])
    def test_fewer_text_tokens_than_pivots(self, texts: int) -> None:
        for asked in (Dart(), Dart(image_pivots=0), Dart(text_pivots=0)):
            assert len(asked.select(image(asked, 50, 20, texts=texts))) == 20

    def test_official_does_not_run_out_of_tokens(self) -> None:
        asked = Dart(image_pivots=10, text_pivots=2, compat="official")
        assert len(asked.select(image(asked, 20, 19))) == 20


def test_pixel_methods_number_positions_as_a_smaller_image_is() -> None:
    assert isinstance(Downsample(), PixelMethod)
    assert Downsample().positions(QWEN) == Downsample().positions(LLAVA) == "compact"


def test_needs_are_what_the_encoder_can_give() -> None:
    assert DivPrune().needs(LLAVA) == {"features": Features()}
    assert VisionZip().needs(QWEN) == {"rows": TowerFeatures(), "attention": ClsAttention(), "keys": EncoderKeys()}
    assert Random().needs(LLAVA) == {}
