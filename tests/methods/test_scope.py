"""SCOPE, and the greedy coverage that it shares with others."""

from __future__ import annotations

import pytest
import torch
from harness import built, inputs_of
from harness_views import KINDS, QWEN, check_picks, image, of_tensors, picked, values
from torch import Tensor

import vlmprune
from vlmprune.core.errors import UserError
from vlmprune.core.method import Method
from vlmprune.core.recipe import Recipe, Stage
from vlmprune.core.signals import ClsAttention
from vlmprune.core.view import ImageView, ModelInfo, TowerRows
from vlmprune.methods.coverage import AT_ONCE, most_covering
from vlmprune.methods.vision.scope import Scope


def plain_loop(covers: Tensor, count: int, weights: Tensor, add: bool = False) -> list[int]:
    """The definition: every gain at every step, in float64."""
    covers, picks = covers.double(), list[int]()
    for _ in range(count):
        best = covers[picks].amax(0).clamp(min=0) if picks else torch.zeros(covers.shape[1])
        gain = (covers - best).clamp(min=0).sum(1)
        score = gain + weights if add else gain * weights
        score[picks] = -torch.inf
        picks.append(int(score.argmax()))
    return picks


def scored(features: Tensor, attention: Tensor, keep: int) -> ImageView:
    return of_tensors(keep, None, attention=attention, rows=TowerRows(features, None))


@pytest.mark.parametrize(("n", "things"), [(1, 5), (AT_ONCE, 40), (AT_ONCE + 1, 3), (150, 60)])
def test_gains_that_are_not_computed_again_do_not_change_the_picks(n: int, things: int) -> None:
    covers = values("noise", n, things, seed=n)
    assert most_covering(covers, n).tolist()[:60] == plain_loop(covers, min(n, 60), torch.ones(n))


def test_among_equal_gains_the_lower_index_is_picked() -> None:
    covers = torch.tensor([[0.5, 0, 0], [0, 1, 0], [0, 0, 1], [1, 0, 0], [0, 1, 0]])
    assert most_covering(covers, 5).tolist() == [1, 2, 3, 0, 4]
    many = torch.zeros(3 * AT_ONCE, 2)  # nothing is ever gained
    assert most_covering(many, len(many)).tolist() == list(range(len(many)))


class TestScope:
    @pytest.mark.parametrize("combined", ["multi", "add"])
    @pytest.mark.parametrize("alpha", [0.5, 1.0, 2.5])
    @pytest.mark.parametrize(("n", "keep"), [(2, 1), (100, 37), (100, 99)])
    def test_it_is_the_definition(self, combined: str, alpha: float, n: int, keep: int) -> None:
        asked = Scope(alpha=alpha, combined=combined)  # type: ignore[arg-type]
        features, attention = values("noise", n, 12, seed=n), values("noise", n, seed=n + 1).abs() * 9
        unit = torch.nn.functional.normalize(features.double(), dim=1)
        view = scored(features, attention, keep)
        expected = plain_loop(unit @ unit.T, keep, attention.double() ** alpha, combined == "add")
        assert asked.picks(view).tolist() == expected
        assert picked(asked, view).tolist() == sorted(expected)

    def test_one_of_each_cluster_is_kept_by_the_attention_within(self) -> None:
        features = torch.eye(4, 12).repeat_interleave(5, 0)
        attention = torch.ones(20)
        attention[[3, 7, 14, 15]] = 2.0
        assert picked(Scope(), scored(features, attention, 4)).tolist() == [3, 7, 14, 15]

    def test_opposite_tokens_do_not_cover_each_other(self) -> None:
        features = torch.tensor([[1.0, 0], [-1, 0], [0, 1]])
        assert Scope(alpha=0.0).picks(scored(features, torch.ones(3), 2)).tolist() == [0, 1]

    def test_a_token_without_attention_comes_last_and_constant_ones_go_by_index(self) -> None:
        attention = torch.tensor([0.0, 1, 2, 0])
        assert Scope().picks(scored(torch.eye(4), attention, 3)).tolist() == [2, 1, 0]
        assert Scope().picks(scored(torch.ones(4, 4), attention, 3)).tolist() == [2, 0, 1]

    @pytest.mark.parametrize(("n", "width"), [(34, 32), (51, 16), (67, 100), (130, 40)])
    def test_equal_tokens_go_by_index_however_a_product_rounds(self, n: int, width: int) -> None:
        alike = values("noise", 1, width).repeat(n, 1)
        for keep in (1, 10, n - 1):
            assert Scope().picks(scored(alike, torch.ones(n), keep)).tolist() == list(range(keep))

    def test_a_zero_vector_neither_covers_nor_breaks_anything(self) -> None:
        features = torch.eye(5)
        features[0] = 0
        assert Scope().picks(scored(features, torch.tensor([9.0, 1, 2, 3, 4]), 4)).tolist() == [4, 3, 2, 1]

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("alpha", [0.0, 1.0, 3.0])
    def test_whatever_the_numbers_the_budget_is_exact(self, kind: str, alpha: float) -> None:
        for keep in (1, 30, 59):
            asked = Scope(alpha=alpha)
            check_picks(picked(asked, image(asked, 60, keep, kind, info=QWEN)), keep, 60)

    def test_values_that_are_not_allowed_are_refused(self) -> None:
        for options in ({"alpha": -1.0}, {"combined": "product"}):
            with pytest.raises(UserError, match="scope"):
                Scope(**options)  # type: ignore[arg-type]


class Both(Method):
    """Remembers attention as mean and as sum over heads."""

    name, stage = "both", "vision"

    def needs(self, info: ModelInfo) -> dict[str, ClsAttention]:  # type: ignore[override]
        return {"mean": ClsAttention(), "sum": ClsAttention(heads="sum")}

    def select(self, view: ImageView) -> Tensor:
        self.seen = (view["mean"], view["sum"])
        return torch.arange(view.keep)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_the_sum_over_heads_is_the_mean_times_their_number(family: str) -> None:
    asked, model = Both(), built(family)
    config = model.config.vision_config
    heads = getattr(config, "num_attention_heads", None) or config.num_heads
    with torch.no_grad(), vlmprune.prune(model, Recipe((Stage(asked, 1),))):
        model(**inputs_of(family, [[0]]))
    mean, total = asked.seen
    assert heads > 1 and torch.equal(total, mean * heads)
