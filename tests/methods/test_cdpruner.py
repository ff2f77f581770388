"""CDPruner."""

from __future__ import annotations

import pytest
import torch
from harness import RAGGED, TOLERANCE, built, generate, inputs_of, largest, oracle
from harness_text import of_text, shown_with_text, tower
from harness_views import NEXT, QWEN, WIDTH, picked
from torch import Tensor

import vlmprune
from vlmprune.core.method import Method
from vlmprune.core.recipe import Recipe, Stage
from vlmprune.core.selectors import top_k
from vlmprune.core.view import Aligned, Grid
from vlmprune.methods.vision.cdpruner import CDPruner
from vlmprune.models import adapter_for


def greedy_map(features: Tensor, relevance: Tensor, keep: int) -> list[int]:
    """The definition: at each step the token that makes the kernel's determinant largest, from the kernel itself."""
    unit = torch.nn.functional.normalize(features.double(), dim=1)
    kernel = relevance[:, None] * (unit @ unit.T) * relevance
    picks: list[int] = []
    for _ in range(keep):
        free = [i for i in range(len(features)) if i not in picks]
        volumes = [float(torch.logdet(kernel[[*picks, i]][:, [*picks, i]])) for i in free]
        picks.append(free[volumes.index(max(volumes))])
    return picks


class TestCDPruner:
    def relevance(self, aligned: Aligned, sign: int) -> Tensor:
        cosine = sign * torch.cosine_similarity(aligned.visual[:, None], aligned.text, dim=-1).mean(1).double()
        return (cosine - cosine.min() + 1e-6) / (cosine.max() - cosine.min())

    @pytest.mark.parametrize("seed", range(3))
    def test_it_is_the_definition(self, seed: int) -> None:
        view = shown_with_text(CDPruner(), n=30, keep=11, seed=seed)
        relevance = self.relevance(view["aligned"], -1)
        expected = greedy_map(view["features"], relevance, 11)
        assert torch.cat(CDPruner().picks(view)).tolist() == expected
        assert picked(CDPruner(), view).tolist() == sorted(expected)

    def test_the_first_pick_is_the_most_relevant_token(self) -> None:
        for clip in (True, False):
            view = shown_with_text(CDPruner(), clip, n=60, keep=9)
            relevance = self.relevance(view["aligned"], -1 if clip else 1)
            assert int(CDPruner().picks(view)[0][0]) == int(relevance.argmax())

    @pytest.mark.parametrize("theta", [0.1, 0.5, 0.9])
    @pytest.mark.parametrize("clip", [True, False])
    def test_theta_weighs_relevance_against_diversity(self, theta: float, clip: bool) -> None:
        view = shown_with_text(CDPruner(), clip, n=30, keep=9)
        weight = torch.exp(theta / (2 - 2 * theta) * self.relevance(view["aligned"], -1 if clip else 1))
        expected = greedy_map(view["features"], weight, 9)
        assert torch.cat(CDPruner(theta=theta).picks(view)).tolist() == expected

    def test_without_a_text_tower_theta_is_half(self) -> None:
        view = shown_with_text(CDPruner(), False, n=60, keep=11)
        assert torch.equal(picked(CDPruner(), view), picked(CDPruner(theta=0.5), view))
        view = shown_with_text(CDPruner(), True, n=60, keep=11)
        assert not torch.equal(picked(CDPruner(), view), picked(CDPruner(theta=0.5), view))

    def test_where_the_rank_is_used_up_the_most_relevant_fill_the_budget(self) -> None:
        view = shown_with_text(CDPruner(), n=60, keep=30)
        picks = torch.cat(CDPruner().picks(view)).tolist()
        assert WIDTH == 12  # dimensions of the features: the rank
        relevance = CDPruner().relevance(view)
        left = [i for i in top_k(relevance, 60).tolist() if i not in picks[:12]]
        assert picks[12:] == left[:18]

    def test_of_duplicates_one_is_diverse(self) -> None:
        features = torch.eye(WIDTH).repeat_interleave(5, 0)
        visual = torch.cat([torch.ones(60, 1), torch.arange(60).float()[:, None] / 60], dim=1)
        view = of_text(15, visual, torch.tensor([[0.0, -1.0]]), features=features)
        picks = torch.cat(CDPruner().picks(view)).tolist()
        assert picks[:12] == list(range(59, 0, -5)) and picks[12:] == [58, 57, 56]

    def test_tiles_pick_by_themselves_with_relevance_over_the_whole_image(self) -> None:
        view = shown_with_text(CDPruner(), n=48, keep=15, info=NEXT, grid=Grid(4, 4, 3))
        relevance = self.relevance(view["aligned"], -1)
        picks = CDPruner().picks(view)
        for tile, own in enumerate(picks):
            part = slice(16 * tile, 16 * tile + 16)
            assert (own - 16 * tile).tolist() == greedy_map(view["features"][part], relevance[part], 5)
        together = CDPruner(per="image").picks(view)
        assert together[0][:8].tolist() == greedy_map(view["features"], relevance, 8)
        assert len(CDPruner().picks(shown_with_text(CDPruner(), n=48, keep=15, info=QWEN, grid=Grid(4, 4, 3)))) == 1

    def test_features_that_are_not_finite_do_not_break_the_budget(self) -> None:
        view = shown_with_text(CDPruner(), n=20, keep=9)
        view["features"][3], view["features"][4] = torch.inf, torch.nan
        view["aligned"].visual[5], view["aligned"].visual[6] = torch.inf, torch.nan
        assert len(picked(CDPruner(), view)) == 9


def recipe_of(method: Method, keep: float | int) -> Recipe:
    return Recipe((Stage(method, keep),))


@torch.no_grad()
@pytest.mark.parametrize(("family", "size"), [("llava", 24), ("llava_next", 16), ("qwen2_5_vl", 0), ("internvl", 0)])
def test_cdpruner_equals_the_masking_oracle(family: str, size: int) -> None:
    model, inputs = built(family), inputs_of(family, RAGGED)
    own = tower(size) if size else None
    with vlmprune.prune(model, recipe_of(CDPruner(), 0.3), text_tower=own) as session:
        tokens, logits = generate(model, inputs)
    said = "CLIP text tower" if size else "instruction embeddings"
    assert session.last.text == said and all(after < before for before, after in session.last.tokens)
    policy = {0: CDPruner().positions(adapter_for(model).info)}
    assert largest(logits, oracle(family, RAGGED, inputs, tokens, session.last, policy)) < TOLERANCE
