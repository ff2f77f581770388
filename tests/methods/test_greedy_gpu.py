"""The greedy searches on a GPU: its kernel and graphs pick what the steps pick, and the host waits for none of them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec

import pytest
import torch
from torch import Tensor

from vlmprune.methods import diversity, max_min, recorded
from vlmprune.methods.diversity import most_diverse_of_each
from vlmprune.methods.recorded import repeated
from vlmprune.methods.volume import in_steps, largest_volume, largest_volume_of_each
from vlmprune.testing.waiting import never_waiting

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU that torch can use")


@pytest.fixture(autouse=True)
def nothing_is_told(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Neither the kernel nor a graph is given up; both begin afresh."""
    caplog.set_level(logging.WARNING, "vlmprune")
    monkeypatch.setattr(recorded, "_SEEN", recorded._Seen())
    max_min._proven.cache_clear()
    yield
    assert not caplog.messages


def rows(seed: int, n: int = 576, width: int = 256) -> Tensor:
    """Around twelve centres."""
    draw = torch.Generator().manual_seed(seed)
    centres = torch.randn(12, width, generator=draw)[torch.arange(n) % 12]
    return (centres + 0.5 * torch.randn(n, width, generator=draw)).cuda()


def lengths(seed: int, n: int = 576) -> Tensor:
    return (torch.rand(n, generator=torch.Generator().manual_seed(seed)) + 1e-3).cuda()


def same(found: Sequence[Tensor], due: Sequence[Tensor]) -> bool:
    return len(found) == len(due) and all(map(torch.equal, found, due))


def test_a_wait_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="synchroniz"), never_waiting():
        rows(0).sum().item()


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(("sets", "n", "count"), [(1, 576, 64), (8, 576, 576), (3, 1001, 300), (1, 2880, 320)])
def test_the_kernel_picks_what_the_steps_pick(sets: int, n: int, count: int, dtype: torch.dtype) -> None:
    """Of rows of which fifty are there twice."""
    matrices = torch.empty(sets, n, n, dtype=dtype, device="cuda")
    farthest = torch.stack([
        diversity._nearest_others(diversity._directions(rows(seed, n)[torch.arange(n) % (n - 50)].to(dtype)), own)
        for seed, own in enumerate(matrices)
    ])  # fmt: skip
    for again in (True, False):
        if not again:
            matrices.diagonal(dim1=1, dim2=2).fill_(-torch.inf)
        assert max_min.chosen(matrices) == "triton"
        found = max_min.picks_there(matrices, farthest, count)
        assert torch.equal(found, max_min.in_steps(matrices, farthest, count))
        for own, matrix, first in zip(found, matrices, farthest, strict=True):
            assert torch.equal(own.cpu(), max_min.picks_here(matrix.cpu(), first.cpu(), count))


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
@pytest.mark.parametrize(("n", "dtype"), [(16384, torch.float32), (23170, torch.bfloat16), (11585, torch.float64)])
def test_the_largest_matrices_fit_in_a_program(n: int, dtype: torch.dtype) -> None:
    assert n**2 * dtype.itemsize <= diversity.MATRIX_BYTES < (n + 1) ** 2 * dtype.itemsize
    matrices = torch.rand(1, n, n, device="cuda").to(dtype)
    farthest = matrices.amax(2)
    assert max_min.chosen(matrices) == "triton"
    assert torch.equal(max_min.picks_there(matrices, farthest, 50), max_min.in_steps(matrices, farthest, 50))


@pytest.mark.parametrize("room", [diversity.MATRIX_BYTES, 0])
def test_the_most_diverse_are_found_without_a_wait(room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diversity, "MATRIX_BYTES", room)
    sets = [rows(seed) for seed in range(4)]
    due = most_diverse_of_each(sets, 64)  # a kernel is tried at its first use
    with never_waiting():
        found = most_diverse_of_each(sets, 64)
    assert same(found, due)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("sets", "n", "count"), [(1, 576, 64), (8, 576, 64), (1, 2880, 320)])
def test_a_graph_picks_what_the_steps_pick_and_is_not_waited_for(
    sets: int, n: int, count: int, dtype: torch.dtype
) -> None:
    given = [
        [own.to(dtype) for make in (rows, lengths) for own in (make(100 * turn + seed, n) for seed in range(sets))]
        for turn in range(5)
    ]
    due = [in_steps(own, count) for own in given]
    assert not torch.equal(due[0][0], due[1][0])
    found = [repeated(in_steps, own, count) for own in given[:2]]
    assert recorded.is_recorded(in_steps, given[0], count)
    with never_waiting():
        found += [repeated(in_steps, own, count) for own in given[2:]]
        in_steps(given[0], count)
    assert all(map(same, found, due))


def test_a_graph_recorded_in_inference_mode_in_another_queue_is_good() -> None:
    given = [[rows(turn), lengths(turn)] for turn in range(4)]
    due = [in_steps(own, 30) for own in given]
    torch.cuda.synchronize()
    with torch.inference_mode(), torch.cuda.stream(torch.cuda.Stream()):
        found = [repeated(in_steps, own, 30) for own in given[:3]]
        torch.cuda.synchronize()
    queue = torch.cuda.current_stream()
    found += [repeated(in_steps, own, 30) for own in given[:2]]
    assert all(map(same, found, [*due[:3], *due[:2]])) and torch.cuda.current_stream() == queue


def test_the_largest_volumes_are_those_of_each_set_and_of_a_cpu() -> None:
    """By graphs from the third turn on."""
    sets, long = [rows(seed) for seed in range(5)], [lengths(seed) for seed in range(5)]
    alone = [largest_volume(own, length, 20) for own, length in zip(sets, long, strict=True)]
    for _ in range(4):
        assert same(largest_volume_of_each(sets, long, [20] * 5), alone)
    for own, length, due in zip(sets, long, alone, strict=True):
        assert torch.equal(largest_volume(own.cpu(), length.cpu(), 20), due.cpu())


METHODS: list[Callable[[list[Tensor]], list[Tensor]]] = [
    lambda sets: most_diverse_of_each(sets, 20),
    lambda sets: largest_volume_of_each(sets, [torch.ones(len(own), device=own.device) for own in sets], [20] * 2),
]


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is one GPU")
@pytest.mark.parametrize("method", METHODS)
def test_a_gpu_that_is_not_the_current_one(method: Callable[[list[Tensor]], list[Tensor]]) -> None:
    sets = [rows(0), rows(1)]
    for _ in range(4):
        found = method([own.to("cuda:1") for own in sets])
        assert same([own.to("cuda:0") for own in found], method(sets))


def test_a_recording_that_fails_leaves_the_queue_as_it_was() -> None:
    def reads(given: Sequence[Tensor], count: int) -> Sequence[Tensor]:
        return [given[0].sum() * float(given[1].sum())]

    queue = torch.cuda.current_stream()
    with pytest.raises(RuntimeError):
        recorded.Recording(reads, [rows(0), lengths(0)], 1)
    assert torch.cuda.current_stream() == queue
    assert rows(0).isfinite().all()  # and the GPU goes on
