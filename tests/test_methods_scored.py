"""FasterVLM, VisPruner, PruMerge and PruMerge+, HiRED, HiPrune++, VisionZip's tiles: what each owes its caller."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from golden_runners.case import acting
from harness import RAGGED, alone, built, inputs_of
from harness_spies import Spy
from harness_views import INFOS, INTERN, KINDS, LLAVA, NEXT, QWEN, SMOL, WIDTH, cases, image, values
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import vlmprune
from vlmprune.core.errors import UserError
from vlmprune.core.method import Method
from vlmprune.core.needs import USED, Depth
from vlmprune.core.recipe import Recipe, Stage, format_method
from vlmprune.core.selectors import ascending, top_k
from vlmprune.core.signals import ClsAttention, EncoderKeys, TowerFeatures
from vlmprune.core.view import Aligned, Grid, ImageView, Merged, ModelInfo, TowerRows
from vlmprune.methods.tiles import shown_by, whole_tile
from vlmprune.methods.vision.fastervlm import FasterVLM
from vlmprune.methods.vision.hiprune import HiPrune
from vlmprune.methods.vision.hiprune_plus import HiPrunePlus
from vlmprune.methods.vision.hired import HiRED
from vlmprune.methods.vision.prumerge import PruMerge
from vlmprune.methods.vision.prumerge_plus import PruMergePlus
from vlmprune.methods.vision.visionzip import VisionZip
from vlmprune.methods.vision.vispruner import VisPruner
from vlmprune.models import adapter_for
from vlmprune.runtime.select import choose, shares
from vlmprune.testing import FAMILIES
from vlmprune.testing.anyres import NEXT as NEXT_IMAGES
from vlmprune.testing.anyres import ONEVISION as ONEVISION_IMAGES
from vlmprune.testing.anyres import Canvas

CHOOSING: list[Method] = [
    FasterVLM(),
    VisPruner(),
    VisPruner(important=0.0),
    VisPruner(important=1.0),
    HiRED(),
    HiRED(alpha=0.0),
    HiRED(alpha=1.0),
    HiPrunePlus(),
    HiPrunePlus(beta=0.9, alpha=1.0),
]
MERGING: list[PruMerge] = [PruMerge(), PruMergePlus(), PruMergePlus(attended=0.0), PruMergePlus(attended=1.0)]
ADAPTIVE: list[PruMerge] = [PruMerge(adaptive=True), PruMergePlus(adaptive=True)]


def shown(asked: Method, **case: Any) -> ImageView:
    """A view of `test_methods.image`, with the instruction where the method reads it."""
    view = image(asked, **case)
    if "aligned" in view.signals:
        numbers = values(case.get("kind", "noise"), view.n + 9, WIDTH, seed=7)
        aligned = Aligned(numbers[9:], numbers[: case.get("texts", 6)], clip=False)
        view.signals = {**view.signals, "aligned": aligned}
    return view


def picked(asked: Method, view: ImageView) -> Tensor:
    chosen = asked.select(view)
    assert isinstance(chosen, Tensor)
    return chosen


@st.composite
def more_cases(draw: st.DrawFn) -> dict[str, Any]:
    """Those of test_methods on more families: their grids' frames are tiles there."""
    return {**draw(cases()), "info": draw(st.sampled_from(INFOS))}


@pytest.mark.parametrize("asked", CHOOSING, ids=format_method)
@given(case=more_cases())
@settings(max_examples=40, deadline=None)
def test_exactly_the_budget_in_order_and_again_the_same(asked: Method, case: dict[str, Any]) -> None:
    chosen = picked(asked, shown(asked, **case))
    assert chosen.dtype == torch.long
    assert len(chosen) == case["keep"]
    assert chosen.tolist() == sorted(set(chosen.tolist()))
    assert int(chosen[0]) >= 0 and int(chosen[-1]) < case["n"]
    assert torch.equal(chosen, picked(asked, shown(asked, **case)))


@pytest.mark.parametrize("asked", [*MERGING, *ADAPTIVE], ids=format_method)
@given(case=more_cases())
@settings(max_examples=40, deadline=None)
def test_merged_tokens_are_finite_and_each_has_a_place_of_its_own(asked: PruMerge, case: dict[str, Any]) -> None:
    merged, again = (asked.select(image(asked, **case)) for _ in range(2))
    anchors = merged.anchors.tolist()
    assert len(anchors) == len(merged.features) == len(set(anchors))
    assert min(anchors) >= 0 and max(anchors) < case["n"]
    assert merged.features.isfinite().all()
    assert torch.equal(merged.features, again.features) and torch.equal(merged.anchors, again.anchors)
    assert len(anchors) == case["keep"] or asked.adaptive
    if asked.positions(case["info"]) == "original":
        assert anchors == sorted(anchors)


@pytest.mark.parametrize("asked", [*CHOOSING, *MERGING], ids=format_method)
@pytest.mark.parametrize("info", INFOS, ids=lambda info: info.family)
@pytest.mark.parametrize("kind", KINDS)
def test_tiles_share_the_budget_through_the_runtime(asked: Method, info: ModelInfo, kind: str) -> None:
    view = shown(asked, n=80, keep=33, kind=kind, info=info, grid=Grid(4, 4, 5))
    for name, signal in view.signals.items():
        if isinstance(signal, TowerRows) and signal.cls is not None:
            view.signals = {**view.signals, name: TowerRows(signal.rows, signal.cls.expand(5, -1))}
    chosen = choose(acting(asked, 33, view))
    anchors = chosen.anchors if isinstance(chosen, Merged) else chosen
    assert len(set(anchors.tolist())) == 33
    together = isinstance(asked, HiRED) or (isinstance(asked, HiPrune) and not info.llava)
    assert asked.pool(info) == ("image" if together else "frame")
    if asked.pool(info) == "frame":
        counts = torch.bincount(anchors // 16, minlength=5)
        assert counts.max() - counts.min() <= 1


@pytest.mark.parametrize("asked", [*CHOOSING, *MERGING, *ADAPTIVE], ids=format_method)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_signals_count_as_the_numbers_they_are(asked: Method, dtype: torch.dtype) -> None:
    half = shown(asked, n=60, keep=17, grid=Grid(6, 10), dtype=dtype)
    whole = shown(asked, n=60, keep=17, grid=Grid(6, 10), dtype=dtype)
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


@pytest.mark.parametrize("asked", [*CHOOSING, *MERGING, *ADAPTIVE], ids=format_method)
def test_one_look_does_not_change_the_signals(asked: Method) -> None:
    view, untouched = (shown(asked, n=60, keep=20, grid=Grid(6, 10)) for _ in range(2))
    asked.select(view)
    for name, signal in view.signals.items():
        before = untouched[name]
        assert torch.equal(*(s if isinstance(s, Tensor) else s[0] for s in (signal, before)))


@pytest.mark.parametrize(
    ("asked", "first"),
    [
        (FasterVLM(), list(range(10))),
        (VisPruner(important=1.0), list(range(10))),
        (HiRED(), list(range(10))),
        (HiPrune(alpha=0.5), list(range(10))),  # one anchor, the first cell, whose neighbours are cells 1 and 8
        (PruMerge(), list(range(10))),
        (PruMergePlus(attended=1.0), list(range(10))),
    ],
    ids=lambda value: format_method(value) if isinstance(value, Method) else "",
)
def test_equal_scores_go_to_the_lower_index(asked: Method, first: list[int]) -> None:
    chosen = asked.select(shown(asked, n=64, keep=10, kind="constant", grid=Grid(8, 8)))
    assert (chosen.anchors if isinstance(chosen, Merged) else chosen).tolist() == first


@pytest.mark.parametrize("cls", [FasterVLM, VisPruner, HiRED, PruMerge, PruMergePlus, HiPrunePlus])
def test_a_method_says_what_it_is(cls: type[Method]) -> None:
    assert cls.summary and "\n" not in cls.summary and len(cls.summary) < 110
    assert cls.stage == "vision" and cls().exact and cls().decoder_layer(LLAVA) is None
    assert [cls().positions(info) for info in (LLAVA, NEXT, QWEN, INTERN)] == ["compact"] * 2 + ["original"] * 2
    for heading in ("Paper:", "Formula:", "Defaults:", "Differences from the authors' code:"):
        assert heading in (cls.__doc__ or ""), heading


@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (VisPruner, {"important": 1.1}),
        (VisPruner, {"compat": "theirs"}),
        (HiRED, {"alpha": -0.1}),
        (HiRED, {"compat": None}),
        (PruMerge, {"adaptive": 1}),
        (PruMergePlus, {"attended": 2}),
        (PruMergePlus, {"compat": ""}),
        (HiPrunePlus, {"beta": "0.1"}),
        (HiPrunePlus, {"relevance_sign": 0}),
        (HiPrunePlus, {"alpha": 3}),
    ],
)
def test_a_wrong_option_is_one_sentence(cls: type[Method], options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=rf"^{cls.name.replace('+', '.')}: {next(iter(options))}=.* must be .*\.$"):
        cls(**options)


class TestFasterVLM:
    def test_it_keeps_what_the_cls_token_looks_at_and_of_equals_the_first(self) -> None:
        view = image(FasterVLM(), 6, 3)
        view.signals = {"attention": torch.tensor([0.1, 0.3, 0.2, 0.2, 0.2, 0.1])}
        assert FasterVLM().select(view).tolist() == [1, 2, 3]

    def test_it_reads_the_layer_that_is_projected(self) -> None:
        assert FasterVLM().needs(LLAVA) == {"attention": ClsAttention(USED)}


class TestVisPruner:
    def naive(self, view: ImageView, important: float) -> list[int]:
        """The definition, with lists."""
        order = top_k(view["attention"], view.n).tolist()
        count = int(view.keep * important)
        kept, rest = order[:count], order[count:]
        unit = torch.nn.functional.normalize(view["rows"].rows, dim=-1)
        likeness = unit @ unit.T
        while len(rest) > view.keep - count:
            a, b = rest[::2], rest[1::2]
            near = {i: float(likeness[i, torch.tensor(b)].max()) for i in a}
            likest = sorted(a, key=lambda i: -near[i])
            rest = likest[min(8, len(rest) - (view.keep - count)) :] + b
        return sorted(kept + rest)

    @pytest.mark.parametrize("important", [0.0, 0.3, 0.5, 0.9])
    @pytest.mark.parametrize(("n", "keep"), [(576, 64), (61, 13), (60, 59), (9, 1), (25, 2), (17, 3)])
    def test_it_is_the_definition(self, important: float, n: int, keep: int) -> None:
        view = image(VisPruner(), n, keep, seed=n)
        assert VisPruner(important=important).select(view).tolist() == self.naive(view, important)

    @pytest.mark.parametrize("kind", ["noise", "ties", "duplicates", "constant"])
    def test_the_length_of_the_lists_of_near_tokens_does_not_matter(
        self, kind: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        view = image(VisPruner(), 200, 30, kind)
        parts = VisPruner().parts(view)
        monkeypatch.setattr("vlmprune.methods.vision.vispruner.NEAR", 2)
        assert all(torch.equal(a, b) for a, b in zip(parts, VisPruner().parts(view), strict=True))

    def test_of_two_copies_one_goes(self) -> None:
        view = image(VisPruner(), 16, 8, seed=1)
        rows = values("noise", 16, 64)
        order = top_k(view["attention"], 16)
        rows[order[1::2]] = rows[order[::2]]  # neighbours by attention are copies of each other
        view.signals = {**view.signals, "rows": TowerRows(rows, None)}
        assert VisPruner(important=0.0).select(view).tolist() == sorted(order[1::2].tolist())

    @pytest.mark.parametrize(("n", "keep"), [(577, 64), (576, 1), (576, 2)])
    def test_official_refuses_what_the_authors_code_cannot_do(self, n: int, keep: int) -> None:
        view = image(VisPruner(), n, keep)
        assert len(VisPruner().select(view)) == keep
        with pytest.raises(UserError, match="the authors' code fails"):
            VisPruner(compat="official").select(view)


class TestPruMerge:
    def naive(self, view: ImageView, kept: list[int]) -> Tensor:
        attention, rows = view["attention"], view["rows"].rows
        merged = []
        for i in kept:
            likeness = torch.cosine_similarity(view["keys"].rows[i], view["keys"].rows, dim=-1)
            near = [j for j in top_k(likeness, view.n).tolist() if j != i][:32]
            merged.append(rows[i] + sum(attention[j] * rows[j] for j in near))
        rest = [j for j in range(view.n) if j not in kept]
        return torch.stack([*merged, sum(attention[j] * rows[j] for j in rest)])

    def view(self, n: int, keep: int, info: ModelInfo = LLAVA) -> ImageView:
        view = image(PruMerge(), n, keep, info=info, seed=n)
        return ImageView(
            keep, view.slots, None, info, {**view.signals, "attention": values("noise", n).softmax(0)}, cells=view.slots
        )

    @pytest.mark.parametrize(("n", "keep"), [(100, 12), (20, 5), (2, 1), (40, 39)])
    @pytest.mark.parametrize("asked", MERGING, ids=format_method)
    def test_each_kept_token_gathers_those_like_it_and_the_last_the_rest(
        self, asked: PruMerge, n: int, keep: int
    ) -> None:
        view = self.view(n, keep)
        merged, kept = asked.select(view), asked.kept(view).tolist()
        assert merged.anchors.tolist()[:-1] == kept and merged.space == "tower"
        torch.testing.assert_close(merged.features, self.naive(view, kept), rtol=1e-4, atol=1e-5)

    def test_the_last_token_stands_where_most_of_it_comes_from(self) -> None:
        view = self.view(50, 6)
        order = top_k(view["attention"], 6).tolist()
        assert PruMerge().select(view).anchors.tolist() == order

    def test_where_positions_are_kept_tokens_stand_in_their_order(self) -> None:
        ours, theirs = (PruMerge().select(self.view(50, 6, info)) for info in (QWEN, LLAVA))
        order = theirs.anchors.argsort()
        assert torch.equal(ours.anchors, theirs.anchors[order]) and torch.equal(ours.features, theirs.features[order])

    def test_it_reads_the_last_layer_with_all_heads_as_one(self) -> None:
        assert PruMerge().needs(LLAVA) == {
            "attention": ClsAttention(-1, joined=True),
            "keys": EncoderKeys(-1, joined=True),
            "rows": TowerFeatures(),
        }

    @pytest.mark.parametrize("outliers", [1, 7, 40])
    def test_adaptive_counts_outliers(self, outliers: int) -> None:
        view = self.view(576, 100)
        view["attention"][:] = torch.linspace(0, 1e-3, 576)
        view["attention"][:outliers] = 0.01 + torch.arange(outliers) / 1e4
        found = PruMerge(adaptive=True).select(view).anchors.tolist()
        assert found[:-1] == list(range(outliers))[::-1]
        sampled = PruMergePlus(adaptive=True).kept(view).tolist()
        grid = range(0, 575, max(1, 576 // outliers // 3))
        assert sampled == list(range(outliers))[::-1] + [i for i in grid if i >= outliers]

    def test_without_an_outlier_the_default_keeps_the_strongest(self) -> None:
        view = self.view(576, 100)
        view["attention"][:] = torch.linspace(0.001, 0.002, 576)
        assert PruMerge(adaptive=True).select(view).anchors.tolist() == [575, 574]
        assert PruMerge(adaptive=True, compat="official").select(view).anchors.tolist() == [575]
        assert len(PruMergePlus(adaptive=True).select(view).features) > 3
        with pytest.raises(UserError, match="without outliers"):
            PruMergePlus(adaptive=True, compat="official").select(view)

    def test_official_needs_more_tokens_than_neighbours(self) -> None:
        assert len(PruMerge(compat="official").select(self.view(33, 9)).features) == 9
        with pytest.raises(UserError, match="needs more than 32 tokens, not 32"):
            PruMerge(compat="official").select(self.view(32, 9))

    def test_within_a_budget_half_is_sampled_evenly(self) -> None:
        view = self.view(576, 145)
        kept = PruMergePlus().kept(view).tolist()
        assert kept[:72] == top_k(view["attention"], 72).tolist()
        assert kept[72:] == sorted(kept[72:]) and len(set(kept)) == 144
        gaps = torch.tensor(kept[72:]).diff()
        assert int(gaps.min()) >= 7 and int(gaps.max()) <= 14  # 504 free tokens: every seventh, past those kept
        few = image(PruMergePlus(), 12, 7)
        few.signals = {**few.signals, "attention": torch.tensor([9.0, 0, 0, 8, 0, 0, 0, 7, 0, 0, 0, 0])}
        assert PruMergePlus().kept(few).tolist() == [0, 3, 7, 2, 6, 10]  # of 1 2 4 5 6 8 9 10 11: the 2nd, 5th, 8th
        assert len(set(PruMergePlus(attended=0.25).kept(view)[:36].tolist()) & set(kept[:36])) == 36

    def test_official_repeats_tokens_and_forgets_as_many(self) -> None:
        view, official = self.view(576, 145), PruMergePlus(compat="official")
        kept = official.kept(view)
        assert kept[72:].tolist() == list(range(4, 575, 8))
        repeated = 144 - len(kept.unique())
        assert repeated > 0
        others = [i for i in range(576) if i not in set(kept.tolist())]
        assert official.rest(kept, 576).tolist() == others[repeated:]
        assert len(official.select(view).features) == 145 and not official.exact

    def test_official_looks_for_like_tokens_in_its_list_with_the_repeated_ones_twice(self) -> None:
        view, official = self.view(576, 145), PruMergePlus(compat="official")
        kept, rows, attention = official.kept(view), view["rows"].rows, view["attention"]
        listed = torch.cat([kept, official.rest(kept, 576)])
        likeness = torch.cosine_similarity(view["keys"].rows[kept][:, None], view["keys"].rows[listed][None], dim=-1)
        likeness.fill_diagonal_(-2)  # not the entry itself, but its twin
        near = listed[likeness.topk(32, dim=1).indices]
        twice = kept.bincount()[kept] > 1
        assert bool(twice.any()) and bool((near[twice, 0] == kept[twice]).all())
        wanted = rows[kept] + (attention[near][..., None] * rows[near]).sum(1)
        torch.testing.assert_close(official.select(view).features[:-1], wanted, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize(("n", "keep"), [(576, 2), (576, 144), (256, 65)])
    def test_official_refuses_what_the_authors_code_cannot_do(self, n: int, keep: int) -> None:
        with pytest.raises(UserError, match="the authors' code"):
            PruMergePlus(compat="official").select(self.view(n, keep))
        assert len(PruMergePlus().select(self.view(n, keep)).features) == keep


def canvas(
    side: int,
    down: int,
    across: int,
    rows: range,
    cols: range,
    keep: int,
    early: Tensor | None = None,
    late: Tensor | None = None,
) -> ImageView:
    """An image of LLaVA-NeXT, unpadded to these rows and columns of patches of its canvas; signals are by cell."""
    cells = list(range(side * side))
    slots = list(cells)
    for line, row in enumerate(rows):
        for place, col in enumerate(cols):
            tile = 1 + row // side * across + col // side
            cells.append((tile * side + row % side) * side + col % side)
            slots.append(side * side + line * (len(cols) + 1) + place)
    grid = Grid(side, side, 1 + down * across)
    by_token = {
        name: (values("noise", grid.size, seed=seed) if signal is None else signal)[cells]
        for seed, (name, signal) in enumerate((("early", early), ("late", late)))
    }
    return ImageView(keep, torch.tensor(slots), grid, NEXT, by_token, cells=torch.tensor(cells))


def spot(side: int, tiles: int, rows: range, cols: range) -> Tensor:
    """Early attention on these cells of the whole image alone."""
    early = torch.zeros(tiles, side, side)
    early[0, rows.start : rows.stop, cols.start : cols.stop] = 1
    return early.flatten()


class TestTiles:
    @pytest.mark.parametrize(
        ("down", "across", "rows", "cols"),
        [
            (2, 2, range(16), range(16)),
            (2, 2, range(3, 13), range(16)),
            (1, 2, range(8), range(2, 14)),
            (2, 1, range(1, 15), range(8)),
            (1, 3, range(2, 6), range(24)),
            (3, 1, range(24), range(3, 5)),
            (2, 3, range(16), range(24)),
            (3, 2, range(1, 23), range(16)),
        ],
    )
    def test_each_place_of_the_whole_image_is_shown_by_the_tile_that_lies_there(
        self, down: int, across: int, rows: range, cols: range
    ) -> None:
        view = canvas(8, down, across, rows, cols, 20)
        assert whole_tile(view) == 0
        found = shown_by(view)
        assert found is not None
        for cell, tile in enumerate(found.tolist()):
            row = rows.start + int((cell // 8 + 0.5) / 8 * len(rows))
            col = cols.start + int((cell % 8 + 0.5) / 8 * len(cols))
            assert tile == 1 + row // 8 * across + col // 8
        kept = torch.arange(0, view.n, 2)  # also where an earlier stage dropped tokens
        part = view.part(kept, 5, {name: signal[kept] for name, signal in view.signals.items()})
        thinned = shown_by(part)
        assert thinned is not None and float((thinned == found).float().mean()) > 0.7

    @pytest.mark.parametrize(
        ("family", "side", "seed", "drawn"),
        [("llava_next", 4, seed, drawn) for seed, drawn in enumerate(NEXT_IMAGES)]
        + [("llava_onevision", 5, seed, drawn) for seed, drawn in enumerate(ONEVISION_IMAGES)],
    )
    def test_the_models_own_slots_tell_how_tiles_lie(self, family: str, side: int, seed: int, drawn: Canvas) -> None:
        adapter = adapter_for(built(family))
        (slots,) = adapter.slots("image", FAMILIES[family].image(seed)[0])
        shown = (slots.cells >= 0).nonzero().squeeze(1)
        view = ImageView(5, shown, slots.grid, adapter.info, cells=slots.cells[shown])
        assert whole_tile(view) == 0
        found = shown_by(view)
        assert found is not None
        for cell, tile in enumerate(found.tolist()):
            row = drawn.rows[int((cell // side + 0.5) / side * len(drawn.rows))]
            col = drawn.cols[int((cell % side + 0.5) / side * len(drawn.cols))]
            assert tile == 1 + row // side * drawn.tiles[1] + col // side

    def test_a_video_and_an_image_in_one_piece_have_no_such_tile(self) -> None:
        for info in (NEXT, QWEN, ModelInfo("llava_onevision", 27, 24, False), ModelInfo("video_llava", 24, 32, True)):
            assert whole_tile(image(HiRED(), 32, 5, info=info, grid=Grid(4, 4, 2))) is None
        for info in INFOS:
            assert whole_tile(image(HiRED(), 16, 5, info=info, grid=Grid(4, 4))) is None

    def test_thumbnails_come_last(self) -> None:
        for info in (INTERN, SMOL):
            view = image(HiRED(), 80, 20, info=info, grid=Grid(4, 4, 5))
            assert whole_tile(view) == 4 and shown_by(view) is None


class TestVisionZip:
    def view(self, keep: int) -> ImageView:
        """Two tiles beside each other, unpadded to 6 x 14 patches."""
        view = canvas(8, 1, 2, range(1, 7), range(1, 15), keep)
        rows, cls = values("noise", view.n, WIDTH, seed=3), values("noise", 3, WIDTH, seed=4)
        signals = {"attention": view["late"], "rows": TowerRows(rows, cls), "keys": TowerRows(rows, cls)}
        return ImageView(keep, view.slots, view.grid, view.info, signals, cells=view.cells)

    @pytest.mark.parametrize("keep", [1, 2, 3, 6, 7, 40, 147])
    def test_tiles_are_read_in_the_order_of_the_canvas(self, keep: int) -> None:
        view, method = self.view(keep), VisionZip()
        merged = choose(acting(method, keep, view))
        assert isinstance(merged, Merged) and len(merged.features) == keep
        alone, dominant, cls, contextual = [], [], [], []
        for tile, own in zip(range(3), shares([64, 42, 42], keep), strict=True):
            if own == 0:
                continue
            tokens = (view.frames == tile).nonzero().squeeze(1)
            needs = method.needs(view.info)
            part = view.part(tokens, own, {name: needs[name].take(view[name], tokens, tile) for name in needs})
            made = method.select(part)
            anchors = [int(tokens[a]) if a >= 0 else -1 for a in made.anchors.tolist()]
            pairs = list(zip(anchors, made.features.unbind()))
            if tile == 0:
                alone = pairs
                continue
            count = own - len(method.clusters(part).targets)
            cls, dominant, contextual = cls + pairs[:1], dominant + pairs[1:count], contextual + pairs[count:]
        expected = [*alone, *sorted(dominant, key=lambda pair: pair[0]), *cls, *contextual]
        assert merged.anchors.tolist() == [anchor for anchor, _ in expected]
        assert torch.equal(merged.features, torch.stack([feature for _, feature in expected]))

    def test_frames_of_a_video_and_towers_without_a_cls_token_follow_each_other(self) -> None:
        for info in (ModelInfo("video_llava", 24, 32, True), ModelInfo("llava_next", 27, 32, False)):
            view = self.view(40)
            view.info = info
            if not info.has_cls:
                view.signals = {n: TowerRows(s.rows, None) if n != "attention" else s for n, s in view.signals.items()}
            anchors = [a for a in choose(acting(VisionZip(), 40, view)).anchors.tolist() if a >= 0]
            tiles = view.frames[anchors].tolist()
            assert tiles == sorted(tiles)


class TestHiRED:
    @given(
        side=st.integers(2, 6),
        shape=st.sampled_from([(1, 2), (2, 1), (2, 2), (1, 3), (3, 1), (2, 3), (3, 3)]),
        cut=st.tuples(st.integers(0, 2), st.integers(0, 2)),
        share=st.floats(0, 1),
        alpha=st.floats(0, 1),
        kind=st.sampled_from(KINDS),
        left=st.floats(0.2, 1),
        seed=st.integers(0, 9),
    )
    @settings(max_examples=100, deadline=None)
    def test_the_budget_is_exact_on_every_canvas(
        self,
        side: int,
        shape: tuple[int, int],
        cut: tuple[int, int],
        share: float,
        alpha: float,
        kind: str,
        left: float,
        seed: int,
    ) -> None:
        (down, across), size = shape, side * side * (1 + shape[0] * shape[1])
        rows, cols = (range(c, side * tiles - c) if side * tiles > 2 * c else range(1) for c, tiles in zip(cut, shape))
        early, late = (values(kind, size, seed=seed + i).abs() for i in range(2))
        view = canvas(side, down, across, rows, cols, 1, early, late)
        kept = torch.rand(view.n, generator=torch.Generator().manual_seed(seed)) < left
        kept[:2] = True
        tokens = kept.nonzero().squeeze(1)
        keep = 1 + int(share * (len(tokens) - 2))
        part = view.part(tokens, keep, {name: signal[tokens] for name, signal in view.signals.items()})
        chosen = HiRED(alpha=alpha).select(part)
        assert len(chosen) == keep and chosen.tolist() == sorted(set(chosen.tolist()))
        assert len(HiRED(alpha=alpha, compat="official").select(part)) <= keep

    def counts(self, method: HiRED, view: ImageView) -> list[int]:
        assert view.grid is not None
        return torch.bincount(view.frames[method.select(view)], minlength=view.grid.frames).tolist()

    @pytest.mark.parametrize(("quarter", "band"), [((0, 0), 1), ((0, 1), 1), ((1, 0), 3), ((1, 1), 3)])
    def test_the_tile_over_the_hot_quarter_gets_the_budget(self, quarter: tuple[int, int], band: int) -> None:
        rows, cols = (range(4 * q, 4 * q + 4) for q in quarter)
        view = canvas(8, 2, 2, range(16), range(16), 40, spot(8, 5, rows, cols))
        counts = self.counts(HiRED(alpha=0.75), view)
        assert counts[0] == 30 and counts[1 + 2 * quarter[0] + quarter[1]] == 10
        official = self.counts(HiRED(alpha=0.75, compat="official"), view)  # two rows of the image a tile
        assert official[0] == 30 and official[band] == official[band + 1] == 5

    def test_tiles_above_one_another_are_the_authors_bands(self) -> None:
        view = canvas(12, 3, 1, range(36), range(12), 100)
        ours, theirs = (HiRED(compat=compat).budgets(view, 0, [144] * 4) for compat in ("paper", "official"))
        assert sum(ours) == 100 and all(0 <= a - b <= 1 for a, b in zip(ours, theirs, strict=True))

    def test_a_tile_keeps_what_late_attention_says(self) -> None:
        view = canvas(8, 2, 2, range(16), range(16), 60)
        chosen = HiRED().select(view)
        budgets = HiRED().budgets(view, 0, [64] * 5)
        for tile, budget in enumerate(budgets):
            tokens = (view.frames == tile).nonzero().squeeze(1)
            best = tokens[top_k(view["late"][tokens], budget)]
            assert torch.equal(chosen[view.frames[chosen] == tile], ascending(best))

    @pytest.mark.parametrize("keep", [1, 3, 64, 200, 319])
    @pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
    def test_what_a_tile_has_no_room_for_goes_to_the_others(self, keep: int, alpha: float) -> None:
        early = spot(8, 5, range(4), range(4))
        view = canvas(8, 2, 2, range(16), range(16), keep, early)
        counts = self.counts(HiRED(alpha=alpha), view)
        assert sum(counts) == keep and max(counts) <= 64
        assert sum(self.counts(HiRED(alpha=alpha, compat="official"), view)) <= keep

    @torch.no_grad()
    def test_officials_fractions_may_be_all_there_is(self) -> None:
        model, inputs = built("llava_next"), alone("llava_next", RAGGED, 1)
        with vlmprune.prune(model, "hired(compat=official):1") as session:
            logits = model(**inputs).logits
        assert [len(kept) for kept in session.last.kept[0]] == [0] and bool(logits.isfinite().all())

    def test_fractions_go_to_the_tile_furthest_below_its_share(self) -> None:
        early = torch.zeros(5, 8, 8)
        early[0, 0, 0] = early[0, 4, 0] = early[0, 4, 1] = early[0, 4, 4] = 1  # of four hot tokens 1, 0, 2 and 1
        view = canvas(8, 2, 2, range(16), range(16), 64, early.flatten())
        method = HiRED(alpha=1 - 4 / 64)  # 60 for the whole image, 4 hot tokens, 4 for the tiles
        assert self.counts(method, view) == [60, 1, 0, 2, 1]
        view.keep = 80  # 75 and 5: shares 1.25, 0, 2.5 and 1.25, but 64 is all there is of the whole image
        assert self.counts(method, view) == [64, 4, 0, 8, 4]
        view.keep = 16  # 15 and 1: 0.25, 0, 0.5 and 0.25
        assert self.counts(method, view) == [15, 0, 0, 1, 0]
        view.keep = 48  # 45 and 3: 0.75, 0, 1.5 and 0.75
        assert self.counts(method, view) == [45, 1, 0, 1, 1]

    def test_alpha_is_the_whole_images_share(self) -> None:
        view = canvas(8, 2, 2, range(16), range(16), 40)
        assert self.counts(HiRED(alpha=1.0), view) == [40, 0, 0, 0, 0]
        assert self.counts(HiRED(alpha=0.0), view) == [0, 10, 10, 10, 10]

    def test_without_a_known_place_tiles_share_evenly(self) -> None:
        view = image(HiRED(), 80, 41, info=INTERN, grid=Grid(4, 4, 5))
        assert self.counts(HiRED(alpha=0.25), view) == [8, 8, 8, 7, 10]

    def test_an_image_in_one_piece_keeps_the_top_and_so_does_a_video(self) -> None:
        for grid in (None, Grid(6, 10), Grid(3, 10, 2)):
            view = image(HiRED(), 60, 17, grid=grid)
            assert torch.equal(HiRED().select(view), ascending(top_k(view["late"], 17)))

    def test_layers(self) -> None:
        late = {"late": ClsAttention(USED)}
        assert HiRED().needs(LLAVA) == late  # whose images are never cut into tiles
        assert HiRED().needs(NEXT) == {"early": ClsAttention(Depth(1, 24)), **late}
        assert Depth(1, 24).index(24) == Depth(1, 24).index(5) == 0


class TestHiPrunePlus:
    def test_a_tenth_of_the_budget_is_like_the_text_and_the_weakest_registers_give_way(self) -> None:
        view = shown(HiPrunePlus(), n=256, keep=64, grid=Grid(16, 16))
        near, registers = HiPrune().parts(view)
        chosen = HiPrunePlus().select(view)
        new = sorted(set(chosen.tolist()) - set(near.tolist()) - set(registers[:-6].tolist()))
        assert len(new) == 6 and set(near.tolist()) <= set(chosen.tolist())
        free = [i for i in range(256) if i not in set(near.tolist()) | set(registers[:-6].tolist())]
        likeness = torch.cosine_similarity(view["aligned"].visual[free], view["aligned"].text.mean(0)[None])
        assert new == sorted(free[i] for i in top_k(likeness, 6).tolist())

    def test_official_adds_them_on_top(self) -> None:
        view = shown(HiPrunePlus(), n=256, keep=64, grid=Grid(16, 16))
        base = HiPrune(compat="official").select(view)
        more = HiPrunePlus(compat="official").select(view)
        assert len(more) == 70 and set(base.tolist()) <= set(more.tolist()) and not HiPrunePlus(compat="official").exact

    def test_the_sign_turns_the_choice_round(self) -> None:
        view = shown(HiPrunePlus(), n=64, keep=20, grid=Grid(8, 8))
        assert torch.equal(HiPrunePlus(relevance_sign=-1).relevance(view), -HiPrunePlus().relevance(view))
        assert not torch.equal(HiPrunePlus(relevance_sign=-1).select(view), HiPrunePlus().select(view))

    def test_without_beta_it_is_hiprune(self) -> None:
        view = shown(HiPrunePlus(), n=64, keep=20, grid=Grid(8, 8))
        assert torch.equal(HiPrunePlus(beta=0.0).select(view), HiPrune().select(view))

    def test_a_prompt_without_text(self) -> None:
        view = shown(HiPrunePlus(), n=64, keep=20, grid=Grid(8, 8), texts=0)
        assert len(HiPrunePlus().select(view)) == 20


@torch.no_grad()
@pytest.mark.parametrize("family", ["llava", "llava with SigLIP"])
def test_prumerge_reads_the_projections_of_the_last_layer_over_their_full_width(family: str) -> None:
    model, inputs = built(family), inputs_of(family, RAGGED)
    projected: dict[str, Tensor] = {}
    layer = adapter_for(model).encoder_layers()[-1].self_attn
    handles = [
        getattr(layer, name).register_forward_hook(
            lambda module, args, out, name=name: projected.__setitem__(name, out)
        )
        for name in ("q_proj", "k_proj")
    ]
    spy = Spy(PruMerge().needs(adapter_for(model).info))
    try:
        with vlmprune.prune(model, Recipe((Stage(spy, 0.5),))):
            model(**inputs)
    finally:
        for handle in handles:
            handle.remove()
    query, key = projected["q_proj"], projected["k_proj"]  # [images, tokens, C], heads side by side
    attention = torch.softmax(query @ key.transpose(1, 2) / key.shape[-1] ** 0.5, dim=-1)
    assert len(spy.seen) == len(key) == 3
    cls = int(family == "llava")
    for signals, own, keys in zip(spy.seen, attention, key):
        row = own[0, 1:] if cls else own.mean(0)
        assert float((signals["attention"] - row).abs().max()) < 1e-6
        assert float((signals["keys"].rows - keys[cls:]).abs().max()) < 1e-6
