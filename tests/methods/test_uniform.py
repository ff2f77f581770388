"""Uniform choice."""

from __future__ import annotations

import torch
from golden_runners.case import acting
from harness_views import (
    INTERN,
    LLAVA,
    NEXT,
    QWEN,
    anyres,
    check_picks,
    image,
    picked,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vlmprune.core.view import Grid
from vlmprune.methods.vision.pool import Pool
from vlmprune.methods.vision.random import Random
from vlmprune.methods.vision.uniform import Uniform
from vlmprune.runtime.select import choose


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
