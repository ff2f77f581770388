"""The clustering that SparseVLM and AutoPrune share."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmprune.methods.cluster import cluster_merge


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 10_000), st.booleans())
def test_every_token_is_in_one_cluster_and_each_centre_in_its_own(n: int, count: int, seed: int, alike: bool) -> None:
    made = torch.Generator().manual_seed(seed)
    tokens = torch.randn(n, 6, generator=made)
    if alike:  # many duplicates
        tokens = tokens[torch.randint(max(1, n // 4), (n,), generator=made)]
    found = cluster_merge(tokens, count)
    c = min(n, count)
    assert found.merged.shape == (c, 6) and bool(found.merged.isfinite().all())
    assert len(found.centres.unique()) == c
    assert torch.equal(found.members[found.centres], torch.arange(c))
    for number in range(c):
        assert torch.allclose(found.merged[number], tokens[found.members == number].mean(0), atol=1e-5)
    distance = torch.cdist(tokens, tokens[found.centres], compute_mode="donot_use_mm_for_euclid_dist")
    others = ~torch.isin(torch.arange(n), found.centres)
    assert torch.equal(found.members[others], distance.argmin(1)[others])


def test_clusters_follow_the_tokens_whatever_their_order_and_precision() -> None:
    tokens = torch.randn(30, 8, generator=torch.Generator().manual_seed(1)).half()
    order = torch.randperm(30, generator=torch.Generator().manual_seed(2))
    first, second = cluster_merge(tokens, 4), cluster_merge(tokens[order], 4)
    assert torch.equal(first.centres, order[second.centres])
    assert torch.equal(first.members[order], second.members)
    assert torch.allclose(first.merged, second.merged, atol=1e-6)


def test_two_clumps_of_tokens_are_two_clusters() -> None:
    made = torch.Generator().manual_seed(0)
    clumps = torch.cat([torch.randn(9, 4, generator=made) * 0.1, torch.randn(5, 4, generator=made) * 0.1 + 5])
    found = cluster_merge(clumps, 2)
    assert len(found.members[:9].unique()) == 1 and len(found.members[9:].unique()) == 1
    assert found.members[0] != found.members[-1]


def test_without_noise_the_first_of_equally_dense_tokens_is_the_centre() -> None:
    assert cluster_merge(torch.randn(7, 3, generator=torch.Generator().manual_seed(0)), 1).centres.tolist() == [0]
    pairs = torch.tensor([[0.0], [1.0], [10.0], [11.0]])
    assert cluster_merge(pairs, 2).centres.tolist() == [0, 2]
    tied = torch.ones(4).topk(2).indices  # with noise all four have nothing denser, and are left to topk
    assert cluster_merge(pairs, 2, torch.zeros(4)).centres.tolist() == tied.tolist()


@pytest.mark.parametrize("seed", range(8))
def test_with_noise_equally_prominent_tokens_come_in_the_order_of_topk_as_in_the_authors_code(seed: int) -> None:
    tokens = torch.randn(15, 8, generator=torch.Generator().manual_seed(seed))
    distance = torch.cdist(tokens, tokens, compute_mode="donot_use_mm_for_euclid_dist") / 8**0.5
    density = (-(distance.sort(1).values[:, 1] ** 2) / 2).exp()  # of a token and its nearest, the same for both
    nearer = distance.masked_fill(density[None] <= density[:, None], float(distance.max())).amin(1)
    prominence = density * nearer
    assert int((prominence == prominence.max()).sum()) == 2
    found = cluster_merge(tokens, 2, torch.zeros(()))
    assert found.centres.tolist() == prominence.topk(2).indices.tolist()
