"""Nuwa."""

from __future__ import annotations

import pytest
import torch
from golden_runners.case import acting
from harness_views import LLAVA, NEXT, QWEN, anyres, canvas, values
from torch import Tensor

from vlmprune.core.view import Grid, ImageView, Merged, ModelInfo, TowerRows
from vlmprune.methods.neighbourhood import by_cell, gathering, places_of
from vlmprune.methods.vision.nuwa import MeanStates, Nuwa
from vlmprune.runtime.select import choose


def view_of(
    grid: Grid | None, keep: int, score: Tensor | None = None, info: ModelInfo = LLAVA, kind: str = "noise", n: int = 0
) -> ImageView:
    n = n or (grid.size if grid else 20)
    score = values("noise", n, 1, seed=3)[:, 0].abs() if score is None else score
    rows, states = values(kind, n, 5, seed=1), values(kind, n, 7, seed=2)
    return ImageView(
        keep, torch.arange(n), grid, info, {"rows": TowerRows(rows, None), "attention": score, "states": states}
    )


def merged_by(method: Nuwa, view: ImageView) -> Merged:
    return method.select(acting(method, view.keep, view))


@pytest.mark.parametrize("info", [LLAVA, QWEN])
@pytest.mark.parametrize("grid", [Grid(6, 6), Grid(5, 7), Grid(1, 9), None])
@pytest.mark.parametrize("kind", ["noise", "constant", "zero"])
def test_any_budget_is_met(info: ModelInfo, grid: Grid | None, kind: str) -> None:
    n = grid.size if grid else 20
    for keep in {1, 2, n // 2, n - 1}:
        merged = merged_by(Nuwa(), view_of(grid, keep, info=info, kind=kind))
        anchors = merged.anchors.tolist()
        assert len(anchors) == keep and anchors == sorted(set(anchors)) and merged.features.isfinite().all()


def test_anchors_come_from_all_cells() -> None:
    score = torch.zeros(4, 6)
    score[:2, :2] = torch.tensor([[0.9, 0.8], [0.7, 0.6]])  # one cell has the best four
    score[0, 3] = score[0, 4] = score[3, 0] = score[3, 3] = score[3, 5] = 0.1
    anchors = merged_by(Nuwa(), view_of(Grid(4, 6), 6, score.flatten())).anchors
    assert anchors.tolist() == [0, 3, 4, 18, 21, 23]
    more = merged_by(Nuwa(), view_of(Grid(4, 6), 7, score.flatten())).anchors  # then two of each cell
    assert more.tolist() == [0, 1, 3, 4, 18, 21, 23]
    assert merged_by(Nuwa(quota=4), view_of(Grid(4, 6), 4, score.flatten())).anchors.tolist() == [0, 1, 6, 7]


def test_the_last_row_and_column_of_an_odd_grid() -> None:
    places, score = places_of(view_of(Grid(3, 3), 4))[0], torch.arange(9.0)
    assert by_cell(score, places, 2, 1, whole=False, exact=True).tolist() == [7, 8]
    assert by_cell(score, places, 2, 1, whole=True, exact=True).tolist() == [3, 4]
    assert by_cell(score, places, 6, 1, whole=True, exact=True).tolist() == [0, 1, 3, 4, 7, 8]
    assert by_cell(score, places, 6, 1, whole=False, exact=True).tolist() == [3, 4, 5, 6, 7, 8]
    assert len(by_cell(score, places, 6, 1, whole=True, exact=False)) == 4


def test_the_authors_keep_every_token_rather_than_four_of_a_cell() -> None:
    assert len(merged_by(Nuwa(compat="official"), view_of(Grid(4, 4), 13)).anchors) == 16
    assert len(merged_by(Nuwa(), view_of(Grid(4, 4), 13)).anchors) == 13


def test_weights_fall_with_distance_and_unlikeness() -> None:
    places = places_of(view_of(Grid(1, 4), 2))[0]
    states = torch.tensor([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [0.0, 0.0]])
    weights = gathering(states, places, torch.tensor([0, 2, 3]), torch.tensor([False, False, False]), radius=2.0)
    torch.testing.assert_close(weights[0], torch.tensor([2 / 3, 1 / 3, 0.0, 0.0]))
    assert weights[1].tolist() == pytest.approx([0, 0, 1, 0])
    assert weights[2].tolist() == [0, 0, 0, 1]  # like nothing, not even itself
    alone = gathering(states, places, torch.tensor([0]), torch.tensor([True]), radius=2.0)
    assert alone[0].tolist() == pytest.approx([1, 0, 0, 0])


def test_high_anchors_stay_pure_and_low_ones_gather() -> None:
    view = view_of(Grid(4, 4), 4)
    rows, score = view["rows"].rows, view["attention"]
    merged = merged_by(Nuwa(percentile=0.5, radius=100.0), view)
    high = score[merged.anchors] >= torch.quantile(score[merged.anchors], 0.5)
    for anchor, feature, pure in zip(merged.anchors, merged.features, high, strict=True):
        assert torch.allclose(feature, rows[anchor]) == bool(pure)
    every = merged_by(Nuwa(percentile=1.0, self_weight="normalised"), view_of(Grid(4, 4), 1))
    assert torch.allclose(every.features[0], rows[every.anchors[0]])  # the only anchor is its own quantile


def test_defaults_are_those_of_the_family() -> None:
    for info, same in ((LLAVA, {"percentile": 0.55, "radius": 280**0.5, "self_weight": "overwrite"}),
                       (QWEN, {"percentile": 0.1, "radius": 0.8 * 50**0.5, "self_weight": "normalised"})):  # fmt: skip
        view = view_of(Grid(6, 6), 9, info=info)
        assert torch.equal(merged_by(Nuwa(), view).features, merged_by(Nuwa(**same), view).features)  # type: ignore[arg-type]
        assert Nuwa().positions(info) == "original"
    assert Nuwa().needs(LLAVA)["states"] == MeanStates(tuple(range(15, 24)))
    assert Nuwa().needs(QWEN)["states"] == MeanStates(tuple(range(7, 24)))


def test_the_whole_image_and_the_canvas_of_tiles_choose_apart() -> None:
    view = canvas(4, 1, 2, range(1, 4), range(1, 8), 12)
    whole, tiles = places_of(view)
    assert (whole.rows, whole.cols, tiles.rows, tiles.cols) == (4, 4, 3, 7)
    assert tiles.col.view(3, 7).tolist() == [list(range(7))] * 3 and tiles.row.view(3, 7)[:, 0].tolist() == [0, 1, 2]
    signals = {
        "rows": TowerRows(values("noise", view.n, 5), None),
        "attention": view["late"],
        "states": values("noise", view.n, 6),
    }
    view = ImageView(12, view.slots, view.grid, NEXT, signals, cells=view.cells)
    merged = merged_by(Nuwa(), view)
    assert int((merged.anchors < 16).sum()) == 12 * 16 // 37 + 1 and len(merged.anchors) == 12


def test_newlines_go_first_and_every_tile_of_other_families_chooses_apart() -> None:
    view = anyres(Nuwa(), 20, 2, 2)
    view.signals = {**view.signals, "states": values("noise", view.n, 6)}
    chosen = choose(acting(Nuwa(), 20, view))
    assert isinstance(chosen, Merged) and bool((view.cells[chosen.anchors] >= 0).all())
    frames = view_of(Grid(2, 2, 3), 6, info=QWEN)
    chosen = choose(acting(Nuwa(), 6, frames))
    assert isinstance(chosen, Merged) and torch.bincount(chosen.anchors // 4).tolist() == [2, 2, 2]
