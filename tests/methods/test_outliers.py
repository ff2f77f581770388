"""Local outliers."""

from __future__ import annotations

import pytest
import torch
from harness_views import values

from vlmprune.core.selectors import top_k
from vlmprune.methods.outliers import local_outliers


class TestOutliers:
    @pytest.mark.parametrize(
        ("n", "neighbours", "scale", "seed", "count", "tied"),
        [
            (576, 20, 2.0, 1, 10, 7), (576, 10, 2.0, 2, 11, 9), (100, 20, 1.0, 3, 13, 5), (30, 20, 3.0, 4, 9, 1),
            (21, 20, 2.0, 5, 0, 0), (11, 20, 2.0, 6, 0, 0), (5, 10, 4.0, 7, 0, 0), (2, 10, 1.0, 8, 0, 0),
        ],
    )  # fmt: skip
    def test_as_many_as_scikit_learn_finds(
        self, n: int, neighbours: int, scale: float, seed: int, count: int, tied: int
    ) -> None:
        """Counted by LocalOutlierFactor of scikit-learn 1.9.1."""
        assert local_outliers((scale * values("noise", n, seed=seed)).softmax(0), neighbours) == count
        assert local_outliers(values("ties", n, seed=seed), neighbours) == tied

    def test_the_definition(self) -> None:
        values_ = values("noise", 70, seed=3).double()
        apart = (values_[:, None] - values_).abs()
        near = [[j for j in top_k(-apart[i], 70).tolist() if j != i][:20] for i in range(70)]
        reach = [[max(float(apart[i, j]), float(apart[j, near[j][-1]])) for j in near[i]] for i in range(70)]
        density = [1 / (sum(row) / 20 + 1e-10) for row in reach]
        factor = [sum(density[j] for j in near[i]) / 20 / density[i] for i in range(70)]
        assert local_outliers(values_, 20) == sum(f > 1.5 for f in factor) > 0

    def test_nothing_stands_out_alone_or_among_equals(self) -> None:
        assert local_outliers(torch.ones(1), 20) == local_outliers(torch.ones(50), 20) == 0
