"""HiRED."""

from __future__ import annotations

import pytest
import torch
from harness import RAGGED, alone, built
from harness_views import INTERN, KINDS, LLAVA, NEXT, canvas, image, values
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import vlmprune
from vlmprune.core.needs import USED, Depth
from vlmprune.core.selectors import ascending, top_k
from vlmprune.core.signals import ClsAttention
from vlmprune.core.view import Grid, ImageView
from vlmprune.methods.vision.hired import HiRED


def spot(side: int, tiles: int, rows: range, cols: range) -> Tensor:
    """Early attention on these cells of the whole image alone."""
    early = torch.zeros(tiles, side, side)
    early[0, rows.start : rows.stop, cols.start : cols.stop] = 1
    return early.flatten()


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
