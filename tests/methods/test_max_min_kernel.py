"""The Triton kernel of greedy max-min diversity picks what the loops in torch and numpy pick: on a GPU, or under
Triton's interpreter.

`python3 tools/extras.py triton` runs this in an environment that has Triton.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when the kernel is defined
pytest.importorskip("triton", reason="Triton is not installed: python3 tools/extras.py triton makes an environment")

from vlmprune.methods import diversity, max_min, max_min_kernel
from vlmprune.methods.diversity import most_diverse_of_each

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def spread(n: int) -> Tensor:
    return randn(n, 24, seed=0)


def clusters(n: int) -> Tensor:
    return randn(8, 24, seed=1)[torch.arange(n) % 8] + 0.1 * randn(n, 24, seed=2)


def duplicates(n: int) -> Tensor:
    return randn(n, 24, seed=3)[torch.arange(n) % (n // 2 + 1)]


def ties(n: int) -> Tensor:
    return randn(n, 24, seed=4).sign()


def alike(n: int) -> Tensor:
    return torch.ones(n, 24, dtype=torch.float64)


def broken(n: int) -> Tensor:
    """Some rows have no direction: zeros, and numbers that are none or infinite."""
    rows = randn(n, 24, seed=5)
    rows[::5], rows[1::7], rows[2::11] = 0, torch.nan, torch.inf
    return rows


KINDS: list[Callable[[int], Tensor]] = [spread, clusters, duplicates, ties, alike, broken]


@pytest.fixture
def picked(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, list[Tensor], int, bool], list[list[int]]]]:
    """What each loop picks: "numpy", "torch" or "triton"."""
    ran: list[str] = []
    kernel, steps = max_min_kernel.picks_of_each, max_min.in_steps
    monkeypatch.setattr(max_min_kernel, "picks_of_each", lambda *given: ran.append("triton") or kernel(*given))
    monkeypatch.setattr(max_min, "in_steps", lambda *given: ran.append("torch") or steps(*given))

    def picks(loop: str, sets: list[Tensor], count: int, again: bool) -> list[list[int]]:
        ran.clear()
        monkeypatch.setattr(diversity, "is_here", lambda rows: loop == "numpy")
        monkeypatch.setattr(max_min, "chosen", lambda matrices: loop)
        here = "cpu" if loop == "numpy" else DEVICE
        found = most_diverse_of_each([rows.to(here) for rows in sets], count, again)
        assert set(ran) == {loop} - {"numpy"}
        assert all(own.dtype == torch.long and own.shape == (count,) for own in found)
        return [own.tolist() for own in found]

    yield picks


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "count"), [(1, 1), (2, 2), (32, 32), (33, 20), (97, 97), (100, 1)])
def test_the_kernel_picks_what_the_loops_pick(
    n: int, count: int, dtype: torch.dtype, again: bool, picked: Callable[..., list[list[int]]]
) -> None:
    sets = [kind(n).to(dtype) for kind in KINDS]
    found = picked("triton", sets, count, again)
    assert found == picked("torch", sets, count, again)
    assert again or all(len({*own}) == count for own in found)
    if DEVICE == "cpu":  # a GPU rounds the distances otherwise
        assert found == picked("numpy", sets, count, again)
    assert picked("triton", sets[1:2], count, again) == found[1:2]


def test_it_may_pick_again(picked: Callable[..., list[list[int]]]) -> None:
    [own] = picked("triton", [alike(40)], 5, True)
    assert own == [0, 0, 0, 0, 0]


def given(n: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    matrices = randn(3, n, n, seed=6).to(DEVICE, dtype)
    return matrices, matrices.amax(2)


@pytest.mark.parametrize("dtype", DTYPES)
def test_numbers_are_compared_as_they_are(dtype: torch.dtype) -> None:
    """Those of all sizes and signs, of which the nearest in the precision itself must not be taken for a tie."""
    matrices, farthest = given(70, dtype)
    matrices[0, 1::2] = torch.nextafter(matrices[0, ::2], torch.tensor(9.0).to(matrices))
    matrices[1] *= 1e-3
    found = max_min_kernel.picks_of_each(matrices, farthest, 60, 128)
    assert torch.equal(found, max_min.in_steps(matrices, farthest, 60))


def test_a_block_may_be_larger_than_the_set() -> None:
    matrices, farthest = given(70)
    assert max_min_kernel.block_of(70) == 128
    small, large = (max_min_kernel.picks_of_each(matrices, farthest, 50, block) for block in (128, 1024))
    assert torch.equal(small, large)


def test_matrices_need_not_lie_together() -> None:
    matrices, farthest = given(70)
    apart = max_min_kernel.picks_of_each(matrices.transpose(1, 2), farthest, 50, 128)
    assert torch.equal(apart, max_min.in_steps(matrices.transpose(1, 2), farthest, 50))


@pytest.fixture
def unproven() -> Iterator[None]:
    max_min._proven.cache_clear()
    yield
    max_min._proven.cache_clear()


def proven(block: int, dtype: torch.dtype) -> bool:
    return max_min._proven(torch.device(DEVICE), dtype, block)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("block", [64, 4096])
def test_the_kernel_is_tried_in_the_block_that_is_to_run(block: int, dtype: torch.dtype, unproven: None) -> None:
    assert proven(block, dtype)


def fails(*_: object) -> Tensor:
    raise RuntimeError("no compiler")


@pytest.mark.parametrize("kernel", [fails, lambda matrices, farthest, count, block: torch.zeros(2, 40).long()])
def test_a_kernel_that_does_not_work_is_told_and_not_used(
    kernel: Callable[..., Tensor], unproven: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(max_min_kernel, "picks_of_each", kernel)
    assert not proven(64, torch.float32) and not proven(64, torch.float32)
    [said] = caplog.messages
    assert said.startswith("Diverse tokens are picked step by step by torch, as Triton's kernel does not work here: ")


def test_it_is_for_gpus() -> None:
    matrices, _ = given(70)
    assert max_min.chosen(matrices) == ("triton" if matrices.is_cuda else "torch")


@pytest.mark.slow  # a process of its own, as this one has the interpreter
def test_the_kernel_compiles_for_gpus_that_are_not_here(tmp_path: Path) -> None:
    """For two of NVIDIA's and one of AMD's, up to the largest blocks that there are."""
    script = Path(__file__).parent.parent / "harness_compiling.py"
    variables = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    variables["TRITON_CACHE_DIR"] = str(tmp_path)
    made = subprocess.run([sys.executable, str(script)], env=variables, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    assert made.stdout.count("\n") == 18
