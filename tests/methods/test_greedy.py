"""The greedy searches that methods share: rows far from one another, and rows that span a large volume."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from harness_reads import Reads
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from vlmprune.methods import diversity, max_min, volume
from vlmprune.methods.diversity import most_diverse, most_diverse_of_each
from vlmprune.methods.volume import largest_volume, largest_volume_of_each
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
    assert volume.search([rows], [long], 20, torch.float32)[0].tolist() != [due]
    assert largest_volume(rows, long, 20).tolist() == due


@pytest.fixture(params=["on a CPU", "as on a GPU"])
def loops(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both loops, of which a GPU runs the second."""
    if request.param == "as on a GPU":
        for module in (diversity, volume):
            monkeypatch.setattr(module, "is_here", lambda rows: False)


SETS = [spread(0), clusters(1), duplicates(2), torch.zeros(300, 40), spread(3), torch.ones(300, 40)]


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("room", [1 << 30, 3 * 4 * 300 * 300, 0])  # for all matrices, some, none
def test_sets_together_are_as_diverse_as_each_alone(
    again: bool, dtype: torch.dtype, room: int, loops: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    sets = [rows.to(dtype) for rows in SETS]
    monkeypatch.setattr(diversity, "MATRIX_BYTES", room)
    alone = [most_diverse(rows, 120, again) for rows in sets]
    for own, due in zip(most_diverse_of_each(sets, 120, again), alone, strict=True):
        assert torch.equal(own, due)


def test_a_picture_is_as_diverse_by_either_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    here = most_diverse_of_each(SETS, 120)
    monkeypatch.setattr(diversity, "is_here", lambda rows: False)
    for own, due in zip(most_diverse_of_each(SETS, 120), here, strict=True):
        assert torch.equal(own, due)


def test_sets_together_span_the_volume_that_each_spans_alone(loops: None) -> None:
    """Of several sizes and counts; some of them need float64, and some are of fewer dimensions than are picked."""
    near = randn(1, 64, seed=6) + 1e-4 * randn(300, 64, seed=7)
    sets = [spread(0), near, spread(1)[:200], duplicates(2), torch.zeros(300, 40), spread(3), spread(4)]
    long, counts = [lengths(seed)[: len(rows)] for seed, rows in enumerate(sets)], [30, 30, 30, 60, 30, 30, 10]
    found = largest_volume_of_each(sets, long, counts)
    for own, *one in zip(found, sets, long, counts, strict=True):
        assert torch.equal(own, largest_volume(*one))


class Operations(TorchDispatchMode):
    """Counts operations, each of which a GPU has to be sent."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not func.is_view
        return func(*args, **kwargs or {})


def operations(run: Callable[[], object]) -> int:
    with Operations() as counted:
        run()
    return counted.count


def test_a_pick_of_32_sets_takes_no_more_operations_than_one_of_one_set() -> None:
    def picking(sets: int, count: int) -> int:
        matrices, farthest = torch.rand(sets, 50, 50), torch.rand(sets, 50)
        return operations(lambda: max_min.in_steps(matrices, farthest, count))

    one, many = (picking(sets, 40) - picking(sets, 20) for sets in (1, 32))
    assert one == many == 3 * 20


def test_a_search_in_32_sets_adds_only_products() -> None:
    sets, long = [*torch.rand(32, 50, 20)], [*torch.rand(32, 50)]
    one, many = (operations(Search(sets[:some], long[:some], 15).run) for some in (1, 32))
    own = 15 + 2 * 14 + 15  # of each set: the picked row, two products with earlier picks, one with all vectors
    assert many - one == 31 * own


def test_a_search_reads_no_number_where_that_would_be_a_wait() -> None:
    rows = spread(8) / diversity.lengths(spread(8))[:, None]
    matrix = torch.empty(300, 300)
    farthest = diversity._nearest_others(rows, matrix)
    matrix.fill_diagonal_(-torch.inf)
    with Reads() as reads:
        [picks] = max_min.in_steps(matrix[None], farthest[None], 50)
        Search([spread(8)], [lengths(8).float()], 50).run()
    assert not reads.found
    assert torch.equal(picks, most_diverse(spread(8), 50))
    with Reads() as reads:
        spread(8).sum().item()
    assert reads.found  # the count counts
