"""DivPrune."""

from __future__ import annotations

import math

import pytest
import torch
from harness_views import WIDTH, image, values
from torch import Tensor

from vlmprune.methods.vision.divprune import DivPrune


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
