"""The greedy searches that methods share: rows far from one another, and rows that span a large volume."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from harness_reads import Reads
from torch import Tensor

from vlmprune.methods import diversity, volume
from vlmprune.methods.diversity import most_diverse
from vlmprune.methods.volume import largest_volume
from vlmprune.methods.volume_search import AheadSearch, Search


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def spread(seed: int) -> Tensor:
    return randn(300, 40, seed=seed)


def clusters(seed: int) -> Tensor:
    return randn(8, 64, seed=seed)[torch.arange(300) % 8] + 0.3 * randn(300, 64, seed=seed + 1)


def duplicates(seed: int) -> Tensor:
    return spread(seed)[torch.arange(300) % 150]


KINDS = pytest.mark.parametrize("kind", [spread, clusters, duplicates])


def lengths(seed: int) -> Tensor:
    return torch.rand(300, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) + 1e-6


def definition(rows: Tensor, lengths: Tensor, count: int) -> list[int]:
    """Each pick is the vector with most left, orthogonally to all earlier picks, by an exact factorisation."""
    vectors = torch.nn.functional.normalize(rows.double(), dim=1) * lengths[:, None]
    picks: list[int] = []
    while len(picks) < count:
        basis = torch.linalg.qr(vectors[picks].T).Q
        left = (vectors - vectors @ basis @ basis.T).square().sum(1)
        left[picks] = -1
        picks.append(int(left.argmax()))
    return picks


@KINDS
@pytest.mark.parametrize("again", [False, True])
def test_without_a_matrix_the_picks_are_the_same(
    kind: Callable[[int], Tensor], again: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = 100 if kind is duplicates else 260  # among more duplicates than that, rounding decides
    whole = most_diverse(kind(0), count, again)
    assert whole.dtype == torch.long and len(whole) == count
    monkeypatch.setattr(diversity, "MATRIX_BYTES", 0)
    assert torch.equal(most_diverse(kind(0), count, again), whole)


@KINDS
def test_one_row_at_a_time_and_many_give_the_same_picks(kind: Callable[[int], Tensor]) -> None:
    rows, long = kind(2), lengths(2).float()
    ahead, single = AheadSearch(rows, long, 30), Search([rows], [long], 30)
    ahead.run(), single.run()
    assert ahead.picks.tolist() == single.picks.tolist()
    torch.testing.assert_close(ahead.lefts, single.lefts, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(ahead.basis, single.basis, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(ahead.basis[0] @ ahead.basis[0].T, torch.eye(30), rtol=0, atol=1e-4)


@KINDS
@pytest.mark.parametrize("count", [1, 16, 17, 39])
def test_the_largest_volume_is_the_definition(kind: Callable[[int], Tensor], count: int) -> None:
    assert largest_volume(kind(4), lengths(4), count).tolist() == definition(kind(4), lengths(4), count)


def test_what_float32_cannot_tell_is_found_in_float64() -> None:
    """All vectors are nearly one and the same: after the first pick, float32 would pick by its own rounding."""
    rows, long = randn(1, 64, seed=6) + 1e-4 * randn(120, 64, seed=7), 1 + torch.arange(120).double() / 1000
    due = definition(rows, long, 20)
    assert volume._search([rows], [long], 20, torch.float32)[0].tolist() != [due]
    assert largest_volume(rows, long, 20).tolist() == due


def test_a_search_reads_no_number_where_that_would_be_a_wait() -> None:
    rows = spread(8) / diversity.lengths(spread(8))[:, None]
    matrix = torch.empty(300, 300)
    farthest = diversity._nearest_others(rows, matrix)
    matrix.fill_diagonal_(-torch.inf)
    with Reads() as reads:
        [picks] = diversity._picks(matrix[None], [farthest], 50)
        Search([spread(8)], [lengths(8).float()], 50).run()
    assert not reads.found
    assert torch.equal(picks, most_diverse(spread(8), 50))
    with Reads() as reads:
        spread(8).sum().item()
    assert reads.found  # the count counts
