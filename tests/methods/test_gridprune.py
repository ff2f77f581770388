"""GridPrune."""

from __future__ import annotations

import pytest
import torch
from harness_views import (
    WIDTH,
    of_tensors,
    picked,
    values,
)

from vlmprune.core.view import Aligned, Grid, ImageView
from vlmprune.methods.blocks import blocks
from vlmprune.methods.vision.gridprune import GridPrune


class TestGridPrune:
    def view(self, keep: int, texts: int = 1, clip: bool = True) -> ImageView:
        """8 x 8 tokens; those of the lower right quarter point where the text does."""
        visual = torch.zeros(64, WIDTH)
        visual[:, 1] = 1
        visual.view(8, 8, WIDTH)[4:, 4:, 0] = 1
        aligned = Aligned(visual, torch.eye(WIDTH)[:1].repeat(texts, 1), clip)
        return of_tensors(keep, Grid(8, 8), attention=torch.arange(64.0) / 64, aligned=aligned)

    def counts(self, asked: GridPrune, view: ImageView) -> list[int]:
        kept = picked(asked, view)
        return [int(torch.isin(zone, kept).sum()) for zone in blocks(view, 2, 2)]

    def test_the_text_says_where_to_look(self) -> None:
        assert self.counts(GridPrune(zones=2, temperature=0.1), self.view(12)) == [0, 0, 0, 12]
        assert self.counts(GridPrune(zones=2, temperature=0.1, relevance_sign=-1), self.view(12)) == [4, 4, 4, 0]
        assert self.counts(GridPrune(zones=2, temperature=100.0), self.view(12)) == [3, 3, 3, 3]

    def test_a_full_zone_leaves_its_rest_to_others(self) -> None:
        assert self.counts(GridPrune(zones=2, temperature=0.1), self.view(22)) == [2, 2, 2, 16]

    def test_without_text_zones_of_equal_size_are_equal(self) -> None:
        assert self.counts(GridPrune(zones=2), self.view(14, texts=0)) == [4, 4, 3, 3]

    def test_the_largest_remainders_round_up(self) -> None:
        relevance = [torch.tensor(share).log() for share in (0.5, 0.3, 0.2)]
        assert GridPrune().budgets(7, relevance, [9, 9, 9]) == [4, 2, 1]  # 3.5, 2.1, 1.4
        assert GridPrune().budgets(8, relevance, [9, 9, 9]) == [4, 2, 2]  # 4, 2.4, 1.6

    @pytest.mark.parametrize("temperature", [1e-6, 1e-45, 1e-320])
    def test_the_lowest_temperature_looks_at_one_zone(self, temperature: float) -> None:
        relevance = [torch.tensor(mean) for mean in (0.2, 0.3, -0.1)]
        assert GridPrune(temperature=temperature).budgets(7, relevance, [9, 9, 9]) == [0, 7, 0]

    def test_relevance_is_the_mean_cosine_to_the_text(self) -> None:
        visual, text = values("noise", 9, WIDTH), values("noise", 4, WIDTH, seed=1)
        view = of_tensors(3, None, attention=torch.zeros(9), aligned=Aligned(visual, text, False))
        expected = torch.cosine_similarity(visual[:, None], text[None], dim=-1).mean(1)
        torch.testing.assert_close(GridPrune().relevance(view), expected)

    def test_alpha_weighs_attention_against_relevance(self) -> None:
        view = self.view(8)
        assert picked(GridPrune(zones=1, alpha=1.0), view).tolist() == list(range(56, 64))
        assert picked(GridPrune(zones=1, alpha=0.0), view).tolist() == [36, 37, 38, 39, 44, 45, 46, 47]
