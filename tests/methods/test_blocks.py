"""Runs and blocks of tokens."""

from __future__ import annotations

from typing import Any

import torch
from harness_views import (
    WIDTH,
    cases,
    image,
    of_tensors,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmprune.core.view import Grid
from vlmprune.methods.blocks import blocks, fill, runs
from vlmprune.methods.vision.gprune import GPrune


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
