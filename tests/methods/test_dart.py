"""DART."""

from __future__ import annotations

import pytest
import torch
from harness_views import WIDTH, image

from vlmprune.core.selectors import top_k
from vlmprune.core.view import Tokens
from vlmprune.methods.decoder.dart import Dart


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
