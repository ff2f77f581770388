"""G-Prune, HoloV, GridPrune, average pooling and ToMe: what each owes its caller, and each one's formula."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from golden_runners.case import acting
from harness_views import KINDS, LLAVA, QWEN, WIDTH, cases, image, values
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from vlmprune.core.errors import UserError
from vlmprune.core.method import Method
from vlmprune.core.recipe import format_method
from vlmprune.core.selectors import top_k
from vlmprune.core.view import Aligned, Grid, ImageView, Merged, ModelInfo
from vlmprune.methods.blocks import blocks, fill, runs
from vlmprune.methods.matching import match
from vlmprune.methods.vision.gprune import GPrune
from vlmprune.methods.vision.gridprune import GridPrune
from vlmprune.methods.vision.holov import HoloV
from vlmprune.methods.vision.pool import Pool
from vlmprune.methods.vision.random import Random
from vlmprune.methods.vision.tome import ToMe
from vlmprune.methods.vision.uniform import Uniform
from vlmprune.runtime.select import choose

NEXT = ModelInfo("llava_next", encoder_layers=24, decoder_layers=32, has_cls=True)
INTERN = ModelInfo("internvl", encoder_layers=24, decoder_layers=28, has_cls=True)
INFOS = [LLAVA, NEXT, INTERN, QWEN]
CHOOSING: list[Method] = [
    GPrune(),
    GPrune(similarity=0.0, temperature=0.5, iterations=1),
    GPrune(similarity=1.0),
    HoloV(),
    HoloV(crops=7, alpha=0.0),
    GridPrune(),
    GridPrune(zones=3, temperature=0.01, alpha=0.0),
    GridPrune(alpha=1.0, saliency="raw", relevance_sign=-1),
    Uniform(),
]
MERGING: list[Method] = [Pool(), Pool(mode="max"), ToMe(), ToMe(order="matching", weighted=False)]


def shown(asked: Method, **case: Any) -> ImageView:
    """A view of `test_methods.image`, with the instruction where the method reads it."""
    view = image(asked, **case)
    if "aligned" in view.signals:
        numbers = values(case.get("kind", "noise"), view.n + 9, WIDTH, seed=7)
        numbers = numbers.to(case.get("dtype", torch.float32))
        aligned = Aligned(numbers[9:], numbers[: case.get("texts", 6)], clip=False)
        view.signals = {**view.signals, "aligned": aligned}
    return view


def of_tensors(keep: int, grid: Grid | None, info: ModelInfo = LLAVA, **signals: Any) -> ImageView:
    n = len(next(iter(signals.values())))
    return ImageView(keep, torch.arange(n), grid, info, signals)


def anyres(asked: Method, keep: int, rows: int, cols: int, kind: str = "noise") -> ImageView:
    """LLaVA-NeXT's layout: a base tile of 4 x 4, then tiles of 4 x 4 row by row with a newline at each row's end."""
    canvas_row, canvas_col = torch.meshgrid(torch.arange(4 * rows), torch.arange(4 * cols), indexing="ij")
    tile = 1 + canvas_row // 4 * cols + canvas_col // 4
    cells = (tile * 4 + canvas_row % 4) * 4 + canvas_col % 4
    cells = torch.cat([torch.arange(16), nn.functional.pad(cells, (0, 1), value=-1).flatten()])
    grid = Grid(4, 4, 1 + rows * cols)
    view = shown(asked, n=len(cells), keep=keep, kind=kind, info=NEXT, grid=grid)
    view.cells = cells
    return view


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
    """Those of test_methods on more families: their grids' frames are tiles there."""
    return {**draw(cases()), "info": draw(st.sampled_from(INFOS))}


def check_picks(chosen: Tensor, keep: int, n: int) -> None:
    assert chosen.dtype == torch.long
    assert len(chosen) == keep
    assert chosen.tolist() == sorted(set(chosen.tolist()))
    assert int(chosen[0]) >= 0 and int(chosen[-1]) < n


def check_merged(merged: Merged, keep: int, n: int) -> None:
    anchors = merged.anchors.tolist()
    assert merged.features.shape == (keep, WIDTH)
    assert merged.features.isfinite().all()
    assert len(set(anchors)) == len(anchors) == keep
    assert min(anchors) >= 0 and max(anchors) < n


@pytest.mark.parametrize("asked", CHOOSING, ids=format_method)
@given(case=more_cases())
@settings(max_examples=40, deadline=None)
def test_exactly_the_budget_in_order_and_again_the_same(asked: Method, case: dict[str, Any]) -> None:
    chosen = picked(asked, shown(asked, **case))
    check_picks(chosen, case["keep"], case["n"])
    assert torch.equal(chosen, picked(asked, shown(asked, **case)))


@pytest.mark.parametrize("asked", MERGING, ids=format_method)
@given(case=more_cases())
@settings(max_examples=40, deadline=None)
def test_merged_tokens_are_finite_and_each_has_a_place_of_its_own(asked: Method, case: dict[str, Any]) -> None:
    merged, again = (merged_by(asked, shown(asked, **case)) for _ in range(2))
    check_merged(merged, case["keep"], case["n"])
    assert torch.equal(merged.features, again.features) and torch.equal(merged.anchors, again.anchors)
    if format_method(asked) != format_method(MERGING[-1]):
        assert merged.anchors.tolist() == sorted(merged.anchors.tolist())


@pytest.mark.parametrize("asked", [*CHOOSING, *MERGING], ids=format_method)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("keep", [1, 9, 40, 87])
def test_tiles_and_newlines_through_the_runtime(asked: Method, kind: str, keep: int) -> None:
    view = anyres(asked, keep, 2, 2, kind)
    chosen = choose(acting(asked, keep, view))
    if isinstance(chosen, Merged):
        check_merged(chosen, keep, view.n)
    else:
        check_picks(chosen, keep, view.n)
    if keep == 40:
        newlines = int((view.cells[chosen.anchors if isinstance(chosen, Merged) else chosen] < 0).sum())
        assert newlines == (8 if isinstance(asked, GPrune) else 0)


@pytest.mark.parametrize("asked", [*CHOOSING, *MERGING], ids=format_method)
@given(
    tiles=st.sampled_from([(1, 2), (2, 1), (2, 2), (1, 3)]),
    kind=st.sampled_from(KINDS),
    patches=st.floats(0, 1),
    newlines=st.floats(0, 1),
    share=st.floats(0, 1),
    seed=st.integers(0, 9),
)
@settings(max_examples=40, deadline=None)
def test_the_budget_is_exact_whatever_an_earlier_stage_left(
    asked: Method, tiles: tuple[int, int], kind: str, patches: float, newlines: float, share: float, seed: int
) -> None:
    view = anyres(asked, 1, *tiles, kind)
    drawn = torch.rand(view.n, generator=torch.Generator().manual_seed(seed))
    tokens = (drawn < torch.where(view.cells < 0, newlines, patches)).nonzero().squeeze(1)
    if len(tokens) < 2:
        tokens = (view.cells < 0).nonzero().squeeze(1)[:2]  # not a single patch
    keep = 1 + int(share * (len(tokens) - 2))
    signals = {name: need.take(view[name], tokens) for name, need in asked.needs(NEXT).items()}
    chosen = choose(acting(asked, keep, view.part(tokens, keep, signals)))
    if isinstance(chosen, Merged):
        check_merged(chosen, keep, len(tokens))
    else:
        check_picks(chosen, keep, len(tokens))


@pytest.mark.parametrize("asked", [*CHOOSING, *MERGING], ids=format_method)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_signals_count_as_the_numbers_they_are(asked: Method, dtype: torch.dtype) -> None:
    def floats(signal: Any) -> Any:
        return signal.float() if isinstance(signal, Tensor) else Aligned(signal[0].float(), signal[1].float(), False)

    half, whole = (shown(asked, n=60, keep=17, grid=Grid(6, 10), dtype=dtype) for _ in range(2))
    whole.signals = {name: floats(signal) for name, signal in whole.signals.items()}
    a, b = asked.select(half), asked.select(whole)
    if isinstance(a, Merged) and isinstance(b, Merged):
        assert torch.equal(a.features, b.features) and torch.equal(a.anchors, b.anchors)
    else:
        assert isinstance(a, Tensor) and isinstance(b, Tensor) and torch.equal(a, b)


@pytest.mark.parametrize(
    "asked", [*CHOOSING, *MERGING, GPrune(compat="official"), HoloV(compat="official")], ids=format_method
)
@pytest.mark.parametrize("keep", [1, 2, 20, 59])
def test_one_look_does_not_change_the_signals(asked: Method, keep: int) -> None:
    view, untouched = (shown(asked, n=60, keep=keep, grid=Grid(6, 10)) for _ in range(2))
    asked.select(view)
    for name, signal in view.signals.items():
        before = untouched.signals[name]
        pairs = [(signal, before)] if isinstance(signal, Tensor) else list(zip(signal[:2], before[:2]))
        assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("asked", [GPrune(), HoloV()], ids=format_method)
def test_features_that_are_not_finite_do_not_break_the_budget(asked: Method) -> None:
    view = shown(asked, n=60, keep=17, grid=Grid(6, 10))
    view["features"][3] = float("inf")
    view["features"][4] = float("nan")
    check_picks(picked(asked, view), 17, 60)


@pytest.mark.parametrize(
    ("asked", "first"),
    [
        (GPrune(), list(range(10))),
        (HoloV(crops=4), [0, 1, 2, 4, 5, 6, 32, 33, 36, 37]),
        (GridPrune(zones=2), [0, 1, 2, 4, 5, 6, 32, 33, 36, 37]),
    ],
    ids=["gprune", "holov", "gridprune"],
)
def test_ties_go_to_the_lower_index_and_the_earlier_part(asked: Method, first: list[int]) -> None:
    assert picked(asked, shown(asked, n=64, keep=10, kind="constant", grid=Grid(8, 8))).tolist() == first


@pytest.mark.parametrize("cls", [GPrune, HoloV, GridPrune, Pool, ToMe])
def test_each_says_what_it_is(cls: type[Method]) -> None:
    assert cls.stage == "vision" and cls.summary and "\n" not in cls.summary and len(cls.summary) < 110
    assert cls().exact and cls().decoder_layer(LLAVA) is None
    for heading in ("Paper:", "Formula:", "Defaults", "Differences from the authors' code"):
        assert heading in (cls.__doc__ or ""), heading


def test_positions_are_counted_as_their_authors_do() -> None:
    for asked in (HoloV(), GridPrune(), Pool(), ToMe()):
        assert asked.positions(LLAVA) == asked.positions(NEXT) == "compact"
    for asked in (HoloV(), GridPrune(), Pool(), ToMe(), GPrune(), GPrune(compat="uniprune")):
        assert asked.positions(QWEN) == "original"
    assert GPrune().positions(NEXT) == GPrune(compat="official").positions(NEXT) == "original"
    assert GPrune(compat="uniprune").positions(INTERN) == Pool().positions(INTERN) == "compact"


@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (GPrune, {"similarity": 1.5}),
        (GPrune, {"temperature": 0}),
        (GPrune, {"temperature": float("nan")}),
        (GPrune, {"iterations": -1}),
        (GPrune, {"compat": "authors"}),
        (HoloV, {"crops": 0}),
        (HoloV, {"alpha": -0.1}),
        (GridPrune, {"zones": 0}),
        (GridPrune, {"relevance_sign": 2}),
        (GridPrune, {"temperature": True}),
        (Pool, {"mode": "sum"}),
        (Pool, {"per": "image"}),
        (ToMe, {"weighted": 1}),
        (ToMe, {"order": "random"}),
    ],
)
def test_a_wrong_option_is_one_sentence(cls: type[Method], options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=rf"^{cls.name}: {next(iter(options))}=.* must be .*\.$"):
        cls(**options)


class TestBlocks:
    @given(case=cases(), rows=st.integers(1, 5), cols=st.integers(1, 5))
    @settings(max_examples=60, deadline=None)
    def test_they_part_the_tokens(self, case: dict[str, Any], rows: int, cols: int) -> None:
        view = image(GPrune(), **case)
        parts = blocks(view, rows, cols)
        assert sorted(torch.cat(parts).tolist()) == list(range(view.n))
        assert all(len(part) and part.tolist() == sorted(part.tolist()) for part in parts)
        assert len(parts) <= rows * cols * (case["grid"].frames if case["grid"] else 1)

    def test_they_are_rectangles_of_each_frame(self) -> None:
        view = of_tensors(1, Grid(4, 6, 2), features=torch.zeros(48, WIDTH))
        first = [[0, 1, 2, 6, 7, 8], [3, 4, 5, 9, 10, 11], [12, 13, 14, 18, 19, 20], [15, 16, 17, 21, 22, 23]]
        assert [part.tolist() for part in blocks(view, 2, 2)] == first + [[24 + i for i in part] for part in first]

    def test_without_a_grid_they_are_runs(self) -> None:
        view = of_tensors(1, None, features=torch.zeros(10, WIDTH))
        assert [len(part) for part in blocks(view, 2, 2)] == [len(part) for part in runs(view, 4)] == [3, 3, 2, 2]
        assert len(blocks(view, 4, 4)) == 10

    @given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=8), data=st.data())
    @settings(max_examples=100, deadline=None)
    def test_budgets_add_up_and_none_is_larger_than_its_part(self, sizes: list[int], data: st.DataObject) -> None:
        keep = data.draw(st.integers(1, sum(sizes)))
        wanted = [data.draw(st.integers(0, 20)) for _ in sizes]
        counts = [keep * want // max(1, sum(wanted)) for want in wanted]
        order = data.draw(st.permutations(range(len(sizes))))
        budgets = fill(counts, sizes, keep, order)
        assert sum(budgets) == keep
        assert all(min(count, size) <= got <= size for count, got, size in zip(counts, budgets, sizes))

    def test_what_is_left_goes_round_in_order(self) -> None:
        assert fill([0, 0, 0], [5, 5, 5], 4, [2, 0, 1]) == [1, 1, 2]
        assert fill([9, 0, 0], [3, 9, 2], 9, [0, 2, 1]) == [3, 4, 2]


class TestGPrune:
    def naive(self, x: Tensor, asked: GPrune) -> Tensor:
        """The formula edge by edge, in float64."""
        n = len(x)
        unit = x.double() / x.double().norm(dim=1, keepdim=True)
        flow = torch.zeros(n, n, dtype=torch.float64)
        for i in range(n):
            edges = [j for j in range(n) if float(unit[i] @ unit[j]) >= asked.similarity]
            flow[i, edges] = torch.softmax(unit[edges] @ unit[i] / asked.temperature, 0)
        degree = (flow > 1e-45).sum(1)  # float32 knows no smaller number
        return x.double().norm(dim=1) @ torch.linalg.matrix_power(flow, asked.iterations) / degree

    @pytest.mark.parametrize("compat", ["paper", "official"])
    @pytest.mark.parametrize(
        ("similarity", "temperature", "iterations"), [(0.5, 0.03, 5), (0.2, 0.5, 1), (0.7, 0.1, 9)]
    )
    def test_mass_flows_along_edges(self, compat: str, similarity: float, temperature: float, iterations: int) -> None:
        asked = GPrune(similarity, temperature, iterations, compat=compat)
        x = values("noise", 6, WIDTH).repeat_interleave(8, 0) + 0.4 * values("noise", 48, WIDTH, seed=1)
        torch.testing.assert_close(asked.score(x).double(), self.naive(x, asked), rtol=1e-4, atol=1e-6)

    def test_a_token_alone_keeps_its_norm(self) -> None:
        x = torch.eye(WIDTH) * torch.arange(1.0, WIDTH + 1)[:, None]
        torch.testing.assert_close(GPrune().score(x), torch.arange(1.0, WIDTH + 1))

    @pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
    def test_half_precision_forms_the_power(self, dtype: str) -> None:
        x = values("noise", 40, WIDTH)
        rough = GPrune(similarity=0.2, temperature=0.5, score_dtype=dtype).score(x)
        assert rough.dtype == getattr(torch, dtype)
        torch.testing.assert_close(
            rough.float(), GPrune(similarity=0.2, temperature=0.5).score(x), rtol=0.05, atol=0.05
        )

    def test_base_and_canvas_are_a_graph_each_with_newlines_kept(self) -> None:
        view = anyres(GPrune(), 36, 2, 2)
        newlines, base, canvas = GPrune().parts(view)
        assert newlines.tolist() == (view.cells < 0).nonzero().squeeze(1).tolist()
        assert (len(base), len(canvas)) == (6, 22)  # 28 in proportion to 16 and 64: 5.6 and 22.4, both down, one more
        alone = GPrune().score(view["features"][:16])
        assert base.tolist() == top_k(alone, 6).tolist()

    def test_newlines_take_at_most_half_of_the_budget(self) -> None:
        newlines, base, canvas = GPrune().parts(anyres(GPrune(), 7, 2, 2))
        assert len(newlines) == 3 and len(base) + len(canvas) == 4

    @pytest.mark.parametrize("keep", [3, 5, 9])
    def test_where_little_else_is_left_newlines_fill_the_budget(self, keep: int) -> None:
        view = anyres(GPrune(), keep, 2, 2)
        tokens = torch.cat([torch.tensor([3, 5]), (view.cells < 0).nonzero().squeeze(1)])
        part = view.part(tokens, keep, {"features": view["features"][tokens]})
        newlines, base = GPrune().parts(part)
        assert (len(newlines), len(base)) == {3: (1, 2), 5: (3, 2), 9: (7, 2)}[keep]
        check_picks(picked(GPrune(), part), keep, 10)

    def test_official_keeps_newlines_beyond_the_budget(self) -> None:
        official = GPrune(compat="official")
        view = anyres(official, 44, 2, 2)  # half of 88
        assert [len(part) for part in official.parts(view)] == [8, 8, 32]
        assert len(picked(official, view)) == 48 and not official.exact

    def test_uniprune_sets_the_first_tile_apart_on_internvl(self) -> None:
        uniprune = GPrune(compat="uniprune")
        view = shown(uniprune, n=80, keep=27, info=INTERN, grid=Grid(4, 4, 5))
        assert [len(graph) for graph in uniprune.graphs(view)] == [16, 64]
        assert [len(part) for part in uniprune.parts(view)] == [0, 5, 21]  # 5.4 and 21.6, both down
        assert not uniprune.exact
        assert [len(graph) for graph in GPrune().graphs(view)] == [80]
        view.info = QWEN
        assert [len(graph) for graph in uniprune.graphs(view)] == [80]


class TestHoloV:
    def view(self, keep: int, hot: int, info: ModelInfo = LLAVA, compat: str = "paper") -> ImageView:
        """8 x 8 tokens; the attention is nearly all on the rows of one corner's 2 x 2 tokens."""
        attention = torch.full((64,), 1e-4)
        attention.view(8, 8)[:hot, :hot] = 0.2
        return of_tensors(keep, Grid(8, 8), info, features=values("noise", 64, WIDTH), attention=attention)

    def test_crops_are_squares_and_four_by_four_by_default(self) -> None:
        parts = HoloV().parts(self.view(9, 2))
        assert len(parts) == 16 and parts[0].tolist() == [0, 1, 8, 9]
        assert [len(part) for part in HoloV(crops=2).parts(self.view(9, 2))] == [32, 32]
        wide = shown(HoloV(), n=50, keep=9, grid=Grid(5, 10))
        assert HoloV(crops=8).parts(wide)[0].tolist() == [0, 1, 2, 10, 11, 12, 20, 21, 22]  # 2 x 4 crops

    def test_qwen_has_as_many_crops_as_its_budget_asks_for(self) -> None:
        assert len(HoloV().parts(shown(HoloV(), n=576, keep=64, info=QWEN, grid=Grid(24, 24)))) == 16
        assert len(HoloV().parts(shown(HoloV(), n=576, keep=192, info=QWEN, grid=Grid(24, 24)))) == 5

    def test_a_full_crop_leaves_its_rest_to_others(self) -> None:
        view = self.view(20, 2)
        kept = picked(HoloV(), view)
        assert len(kept) == 20 and {0, 1, 8, 9} <= set(kept.tolist())
        per_crop = [int(torch.isin(part, kept).sum()) for part in HoloV().parts(view)]
        assert per_crop == [4, 2, 1, 1] + [1] * 12 or (per_crop[0] == 4 and max(per_crop[1:]) - min(per_crop[1:]) <= 1)

    def test_official_cuts_runs_and_feeds_zeros(self) -> None:
        official = HoloV(crops=16, compat="official")
        view = self.view(20, 2)
        assert official.parts(view)[1].tolist() == [4, 5, 6, 7]
        merged = merged_by(official, view)
        zeros = merged.anchors < 0
        assert len(merged.features) == 20 and int(zeros.sum()) > 0
        assert (merged.features[zeros] == 0).all()
        assert torch.equal(merged.features[~zeros], view["features"][merged.anchors[~zeros]])
        assert merged.anchors[~zeros].tolist() == official.picks(view).tolist()

    def test_variety_decides_within_a_crop_but_not_how_large_its_budget_is(self) -> None:
        view = shown(HoloV(), n=576, keep=96, grid=Grid(24, 24))
        plain, varied = HoloV(alpha=0.0), HoloV(alpha=5.0)
        counts = [[int(torch.isin(part, picked(m, view)).sum()) for part in m.parts(view)] for m in (plain, varied)]
        assert counts[0] == counts[1]
        assert not torch.equal(picked(plain, view), picked(varied, view))

    def test_the_variance_includes_the_zeroed_diagonal(self) -> None:
        x, a = values("noise", 5, WIDTH), torch.rand(5, generator=torch.Generator().manual_seed(0))
        unit = x / x.norm(dim=1, keepdim=True)
        spread = []
        for i in range(5):
            row = [0.0 if i == j else float(unit[i] @ unit[j]) for j in range(5)]
            spread.append(sum((value - sum(row) / 4) ** 2 for value in row) / 4)
        variance = torch.tensor(spread)
        expected = 1000 * a + 0.09 * variance / variance.mean() * 1000 * a.mean()
        torch.testing.assert_close(HoloV().score(x, a), expected, rtol=1e-4, atol=1e-3)


class TestGridPrune:
    def view(self, keep: int, texts: int = 1, clip: bool = True) -> ImageView:
        """8 x 8 tokens; those of the lower right quarter point where the text does."""
        visual = torch.zeros(64, WIDTH)
        visual[:, 1] = 1
        visual.view(8, 8, WIDTH)[4:, 4:, 0] = 1
        aligned = Aligned(visual, torch.eye(WIDTH)[:1].repeat(texts, 1), clip)
        return of_tensors(keep, Grid(8, 8), attention=torch.arange(64.0) / 64, aligned=aligned)

    def counts(self, asked: GridPrune, view: ImageView) -> list[int]:
        kept = picked(asked, view)
        return [int(torch.isin(zone, kept).sum()) for zone in blocks(view, 2, 2)]

    def test_the_text_says_where_to_look(self) -> None:
        assert self.counts(GridPrune(zones=2, temperature=0.1), self.view(12)) == [0, 0, 0, 12]
        assert self.counts(GridPrune(zones=2, temperature=0.1, relevance_sign=-1), self.view(12)) == [4, 4, 4, 0]
        assert self.counts(GridPrune(zones=2, temperature=100.0), self.view(12)) == [3, 3, 3, 3]

    def test_a_full_zone_leaves_its_rest_to_others(self) -> None:
        assert self.counts(GridPrune(zones=2, temperature=0.1), self.view(22)) == [2, 2, 2, 16]

    def test_without_text_zones_of_equal_size_are_equal(self) -> None:
        assert self.counts(GridPrune(zones=2), self.view(14, texts=0)) == [4, 4, 3, 3]

    def test_the_largest_remainders_round_up(self) -> None:
        relevance = [torch.tensor(share).log() for share in (0.5, 0.3, 0.2)]
        assert GridPrune().budgets(7, relevance, [9, 9, 9]) == [4, 2, 1]  # 3.5, 2.1, 1.4
        assert GridPrune().budgets(8, relevance, [9, 9, 9]) == [4, 2, 2]  # 4, 2.4, 1.6

    @pytest.mark.parametrize("temperature", [1e-6, 1e-45, 1e-320])
    def test_the_lowest_temperature_looks_at_one_zone(self, temperature: float) -> None:
        relevance = [torch.tensor(mean) for mean in (0.2, 0.3, -0.1)]
        assert GridPrune(temperature=temperature).budgets(7, relevance, [9, 9, 9]) == [0, 7, 0]

    def test_relevance_is_the_mean_cosine_to_the_text(self) -> None:
        visual, text = values("noise", 9, WIDTH), values("noise", 4, WIDTH, seed=1)
        view = of_tensors(3, None, attention=torch.zeros(9), aligned=Aligned(visual, text, False))
        expected = torch.cosine_similarity(visual[:, None], text[None], dim=-1).mean(1)
        torch.testing.assert_close(GridPrune().relevance(view), expected)

    def test_alpha_weighs_attention_against_relevance(self) -> None:
        view = self.view(8)
        assert picked(GridPrune(zones=1, alpha=1.0), view).tolist() == list(range(56, 64))
        assert picked(GridPrune(zones=1, alpha=0.0), view).tolist() == [36, 37, 38, 39, 44, 45, 46, 47]


class TestPool:
    @pytest.mark.parametrize(("rows", "cols", "side"), [(24, 24, 12), (24, 24, 5), (16, 16, 7), (9, 9, 8)])
    @pytest.mark.parametrize("mode", ["avg", "max"])
    def test_a_square_budget_of_a_square_is_adaptive_pooling(self, rows: int, cols: int, side: int, mode: str) -> None:
        x = values("noise", rows * cols, WIDTH)
        merged = merged_by(Pool(mode=mode), of_tensors(side * side, Grid(rows, cols), features=x))
        shrink = nn.functional.adaptive_avg_pool2d if mode == "avg" else nn.functional.adaptive_max_pool2d
        expected = shrink(x.view(rows, cols, WIDTH).permute(2, 0, 1), (side, side)).flatten(1).T
        torch.testing.assert_close(merged.features, expected)

    def test_a_picture_keeps_its_shape(self) -> None:
        assert Pool().strips(10, 20, 50) == [10] * 5
        assert Pool().strips(20, 10, 50) == [5] * 10
        assert Pool().strips(24, 24, 67) == [8, 8, 9, 8, 8, 9, 8, 9]
        assert Pool().strips(1, 40, 13) == [13] and Pool().strips(40, 1, 13) == [1] * 13

    @given(rows=st.integers(1, 12), cols=st.integers(1, 12), data=st.data())
    @settings(max_examples=100, deadline=None)
    def test_strips_add_up_and_fit(self, rows: int, cols: int, data: st.DataObject) -> None:
        keep = data.draw(st.integers(1, rows * cols))
        strips = Pool().strips(rows, cols, keep)
        assert sum(strips) == keep and len(strips) <= rows and max(strips) <= cols
        assert max(strips) - min(strips) <= 1

    def test_every_token_counts_and_the_middle_lends_its_place(self) -> None:
        x = torch.arange(36.0)[:, None].expand(36, WIDTH)
        merged = merged_by(Pool(), of_tensors(4, Grid(6, 6), features=x))
        assert merged.features[:, 0].tolist() == [7, 10, 25, 28]
        assert merged.anchors.tolist() == [7, 10, 25, 28]

    def test_a_tile_cut_by_unpadding_is_a_smaller_grid(self) -> None:
        x = values("noise", 16, WIDTH)
        view = of_tensors(4, Grid(4, 4, 3), features=x[4:12])
        view.cells = torch.arange(16 + 4, 16 + 12)  # the middle rows of the second tile
        merged = merged_by(Pool(), view)
        torch.testing.assert_close(merged.features, torch.stack([x[[i, i + 4]].mean(0) for i in range(4, 8)]))

    def test_holes_leave_runs_of_tokens(self) -> None:
        x = values("noise", 10, WIDTH)
        view = of_tensors(5, Grid(4, 4), features=x)
        view.cells = torch.tensor([0, 1, 3, 4, 6, 7, 9, 10, 13, 15])
        torch.testing.assert_close(merged_by(Pool(), view).features, x.view(5, 2, WIDTH).mean(1))

    def test_uniprune_makes_a_square_of_any_picture(self) -> None:
        uniprune = Pool(compat="uniprune")
        assert uniprune.strips(12, 25, 16) == uniprune.strips(25, 12, 18) == [4] * 4
        assert not uniprune.exact


class TestUniform:
    def test_every_third_token_of_every_third_row(self) -> None:
        kept = picked(Uniform(), image(Uniform(), 576, 64, grid=Grid(24, 24)))
        assert kept.tolist() == [24 * row + col for row in range(1, 24, 3) for col in range(1, 24, 3)]

    @given(rows=st.integers(1, 12), cols=st.integers(1, 12), data=st.data())
    @settings(max_examples=100, deadline=None)
    def test_no_token_is_far_from_one_that_stays(self, rows: int, cols: int, data: st.DataObject) -> None:
        keep = data.draw(st.integers(1, rows * cols))
        kept = picked(Uniform(), image(Uniform(), rows * cols, keep, grid=Grid(rows, cols)))
        check_picks(kept, keep, rows * cols)
        strips = Pool().strips(rows, cols, keep)
        tall, wide = -(-rows // len(strips)), -(-cols // min(strips))
        places = torch.stack([kept // cols, kept % cols], dim=1)
        for row in range(rows):
            for col in range(cols):
                down, right = (places - torch.tensor([row, col])).abs().T
                assert bool(((down <= tall) & (right <= wide)).any())

    def test_each_tile_has_its_share_and_newlines_go_first(self) -> None:
        view = anyres(Uniform(), 20, 2, 2)
        chosen = choose(acting(Uniform(), 20, view))
        assert isinstance(chosen, Tensor)
        assert torch.bincount(view.cells[chosen] // 16).tolist() == [4] * 5

    def test_positions_are_those_of_random(self) -> None:
        assert [Uniform().positions(info) for info in (LLAVA, NEXT, INTERN, QWEN)] == [
            Random().positions(info) for info in (LLAVA, NEXT, INTERN, QWEN)
        ]


class TestToMe:
    def test_the_most_similar_pair_goes_first(self) -> None:
        x = torch.eye(WIDTH)[:6] * torch.arange(1.0, 7)[:, None]
        x[4] = x[1] * 2  # token 4 (of the first set) looks like token 1 (of the second)
        merged = merged_by(ToMe(), of_tensors(5, None, features=x))
        assert merged.anchors.tolist() == [0, 1, 2, 3, 5]
        assert torch.equal(merged.features[1], (x[1] + x[4]) / 2)
        assert torch.equal(merged.features[[0, 2, 3, 4]], x[[0, 2, 3, 5]])

    @given(n=st.integers(2, 40), data=st.data())
    @settings(max_examples=60, deadline=None)
    def test_a_step_loses_no_token(self, n: int, data: st.DataObject) -> None:
        r, cls = data.draw(st.integers(0, n)), data.draw(st.booleans())
        x = values(data.draw(st.sampled_from(KINDS)), n, WIDTH).double()
        step = match(x, r, cls)
        assert sorted([*step.stay.tolist(), *step.leave.tolist()]) == list(range(n))
        assert len(step.leave) == min(r, (n - cls) // 2)
        assert not cls or step.stay[0] == 0
        sizes = torch.arange(1.0, n + 1).double()
        rows, total = step.merge(x, sizes)
        assert float(total.sum()) == float(sizes.sum())
        torch.testing.assert_close((rows * total[:, None]).sum(0), (x * sizes[:, None]).sum(0))

    def test_a_chain_is_a_mean_over_all_that_it_merged(self) -> None:
        x = values("noise", 4, WIDTH).repeat_interleave(8, 0) + 0.01 * values("noise", 32, WIDTH, seed=1)
        merged, plain = (merged_by(ToMe(weighted=w), of_tensors(4, None, features=x)) for w in (True, False))
        assert merged.anchors.tolist() == plain.anchors.tolist() == [0, 8, 16, 24]
        torch.testing.assert_close(merged.features, x.view(4, 8, WIDTH).mean(1))
        assert not torch.allclose(plain.features, merged.features)

    def test_the_authors_order_is_the_first_set_then_the_second(self) -> None:
        view = of_tensors(5, None, features=values("noise", 8, WIDTH))
        merged = merged_by(ToMe(order="matching"), view)
        step = match(view["features"], 3)
        assert torch.equal(merged.features, step.merge(view["features"], torch.ones(8))[0])
        assert step.stay.tolist()[1:] == [1, 3, 5, 7] and step.stay[0] % 2 == 0
        ordered = merged_by(ToMe(), view)
        assert torch.equal(ordered.features, merged.features[merged.anchors.argsort()])
