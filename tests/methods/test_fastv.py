"""FastV."""

from __future__ import annotations

import pytest
import torch
from harness_views import LLAVA, QWEN, image

from vlmprune.core.errors import UserError
from vlmprune.core.method import Method
from vlmprune.core.plan import acts_of
from vlmprune.core.signals import (
    DecoderStates,
    TextQueryAttention,
)
from vlmprune.core.view import ImageView, ModelInfo
from vlmprune.methods.decoder.dart import Dart
from vlmprune.methods.decoder.fastv import FastV
from vlmprune.methods.vision.random import Random


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
