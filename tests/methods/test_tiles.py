"""Where the tiles of an image lie."""

from __future__ import annotations

import pytest
import torch
from harness import built
from harness_views import (
    INFOS,
    INTERN,
    NEXT,
    QWEN,
    SMOL,
    canvas,
    image,
)

from vlmprune.core.view import Grid, ImageView, ModelInfo
from vlmprune.methods.tiles import shown_by, whole_tile
from vlmprune.methods.vision.hired import HiRED
from vlmprune.models import adapter_for
from vlmprune.testing import FAMILIES
from vlmprune.testing.anyres import NEXT as NEXT_IMAGES
from vlmprune.testing.anyres import ONEVISION as ONEVISION_IMAGES
from vlmprune.testing.anyres import Canvas


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
