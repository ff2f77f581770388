"""Work that a GPU repeats as a CUDA graph: which shapes are recorded, and that what is replayed is for the new numbers.

Where there is no GPU, a tape stands in for the graph. It notes operations of torch and their tensors, and does the
same operations in the same tensors again. `test_greedy_gpu.py` records real graphs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vlmprune.methods import recorded, volume
from vlmprune.methods.recorded import repeated
from vlmprune.methods.volume import in_steps, largest_volume_of_each


class Tape(TorchDispatchMode):
    """Operations to be done again in the tensors in which they were done."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[tuple[Callable[..., Any], Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **kwargs or {})
        if not func.is_view:
            self.steps.append((func, args, kwargs or {}, found))
        return found

    def replay(self) -> None:
        for func, args, kwargs, found in self.steps:
            for own, new in zip(tree_leaves(found), tree_leaves(func(*args, **kwargs)), strict=True):
                if own is not new:
                    own.copy_(new)


@pytest.fixture(autouse=True)
def tapes(monkeypatch: pytest.MonkeyPatch) -> list[Tape]:
    """Those that are recorded instead of graphs."""
    made: list[Tape] = []

    def record(run: Callable[[], Sequence[Tensor]], queue: object) -> Any:
        made.append(Tape())
        with made[-1]:
            outputs = run()
        return made[-1].replay, outputs

    monkeypatch.setattr(recorded, "records", lambda tensor: True)
    monkeypatch.setattr(recorded, "queue", lambda tensor: "the only one")
    monkeypatch.setattr(recorded, "record", record)
    monkeypatch.setattr(recorded, "_SEEN", recorded._Seen())
    return made


def vectors(seed: int, sets: int = 2, n: int = 60) -> list[Tensor]:
    """Rows of each set, and then lengths of each."""
    draw = torch.Generator().manual_seed(seed)
    return [*torch.randn(sets, n, 32, generator=draw), *torch.rand(sets, n, generator=draw)]


def same(found: Sequence[Tensor], due: Sequence[Tensor]) -> bool:
    return len(found) == len(due) and all(map(torch.equal, found, due))


def test_a_search_is_recorded_once_and_replayed_for_other_vectors(tapes: list[Tape]) -> None:
    ran: list[int] = []

    def work(given: Sequence[Tensor], count: int) -> Sequence[Tensor]:
        ran.append(count)
        return in_steps(given, count)

    due = [in_steps(vectors(seed), 20) for seed in range(6)]
    assert not torch.equal(due[0][0], due[1][0])
    for seed in range(6):
        assert same(repeated(work, vectors(seed), 20), due[seed])
    assert len(tapes) == 1 and len(ran) == 3  # the first, the second, and its recording


def test_what_is_found_stays_when_others_follow() -> None:
    found = [repeated(in_steps, vectors(seed), 20) for seed in range(5)]
    for seed, own in enumerate(found):
        assert same(own, in_steps(vectors(seed), 20))


def test_what_is_given_is_not_written_to() -> None:
    for seed in range(4):
        given = vectors(seed)
        repeated(in_steps, given, 20)
        assert same(given, vectors(seed))


def test_shapes_counts_precisions_and_settings_have_recordings_of_their_own(tapes: list[Tape]) -> None:
    def call(seed: int, count: int = 20, dtype: torch.dtype = torch.float32, **shape: int) -> bool:
        given = [own.to(dtype) for own in vectors(seed, **shape)]
        return same(repeated(in_steps, given, count), in_steps(given, count))

    for seed in range(3):
        assert call(seed) and call(seed, count=21) and call(seed, n=61) and call(seed, sets=1)
        assert call(seed, dtype=torch.float64)
    assert len(tapes) == 5
    with torch.autocast("cpu", torch.bfloat16):
        assert all(call(seed) for seed in range(3))
    assert len(tapes) == 6


def test_another_queue_has_a_recording_of_its_own(tapes: list[Tape], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one", "other"):
        monkeypatch.setattr(recorded, "queue", lambda tensor, name=name: name)
        [repeated(in_steps, vectors(seed), 20) for seed in range(3)]
    assert len(tapes) == 2


def test_another_thread_has_a_recording_of_its_own(tapes: list[Tape]) -> None:
    def three() -> bool:
        return all(same(repeated(in_steps, vectors(seed), 20), in_steps(vectors(seed), 20)) for seed in range(3))

    with ThreadPoolExecutor(1) as pool:
        assert three() and pool.submit(three).result() and three()
    assert len(tapes) == 2


def test_the_shapes_used_last_are_kept(tapes: list[Tape]) -> None:
    for _ in range(3):
        repeated(in_steps, vectors(0), 20)
    for n in range(recorded.KEPT - 1):
        repeated(in_steps, vectors(0, n=100 + n), 20)
    repeated(in_steps, vectors(0), 20)  # is replayed, and so the last again
    repeated(in_steps, vectors(0, n=200), 20)
    repeated(in_steps, vectors(0), 20)
    assert len(tapes) == 1 and len(recorded._SEEN.shapes) == recorded.KEPT
    for n in range(recorded.KEPT):
        repeated(in_steps, vectors(0, n=300 + n), 20)
    for _ in range(2):
        repeated(in_steps, vectors(0), 20)
    assert len(tapes) == 2


def test_recordings_hold_no_more_than_there_is_room_for(tapes: list[Tape], monkeypatch: pytest.MonkeyPatch) -> None:
    one = recorded.size(vectors(0))
    monkeypatch.setattr(recorded, "ROOM", 2 * one)
    for count in (20, 21, 22):
        [repeated(in_steps, vectors(seed), count) for seed in range(2)]
    assert sum(own.bytes for own in recorded._SEEN.shapes.values() if own is not None) == 2 * one
    [repeated(in_steps, vectors(seed), 22) for seed in range(2)]
    assert len(tapes) == 3  # the first was dropped, not the last
    monkeypatch.setattr(recorded, "ROOM", one - 1)
    assert all(same(repeated(in_steps, vectors(seed), 23), in_steps(vectors(seed), 23)) for seed in range(3))
    assert len(tapes) == 3


def test_a_recording_made_in_inference_mode_is_good_outside(tapes: list[Tape]) -> None:
    with torch.inference_mode():
        [repeated(in_steps, vectors(seed), 20) for seed in range(2)]
    with torch.no_grad():
        assert same(repeated(in_steps, vectors(3), 20), in_steps(vectors(3), 20))
    with torch.inference_mode():
        assert same(repeated(in_steps, vectors(4), 20), in_steps(vectors(4), 20))
    assert len(tapes) == 1


def fails(run: Callable[[], Sequence[Tensor]], queue: object) -> Any:
    raise RuntimeError("operation not permitted")


def other(run: Callable[[], Sequence[Tensor]], queue: object) -> Any:
    return lambda: None, [torch.zeros_like(own) for own in run()]


@pytest.mark.parametrize(("record", "why"), [(fails, "operation not permitted"), (other, "it picks otherwise")])
def test_a_graph_that_does_not_work_is_told_once_and_not_used(
    record: Any, why: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(recorded, "record", record)
    for count in (20, 21):
        for seed in range(4):
            assert same(repeated(in_steps, vectors(seed), count), in_steps(vectors(seed), count))
    [said] = caplog.messages
    assert said.endswith(f"as a CUDA graph of one does not work here: {why}")


def test_the_largest_volume_is_found_by_recordings(tapes: list[Tape], monkeypatch: pytest.MonkeyPatch) -> None:
    """Several sizes, and sets of fewer dimensions than are picked, which are searched in float64 again."""
    monkeypatch.setattr(volume, "is_here", lambda rows: False)
    for seed in range(4):
        draw = torch.Generator().manual_seed(seed)
        sets = [torch.randn(n, 40, generator=draw) for n in (90, 90, 70)] + [torch.ones(90, 40)]
        lengths = [torch.rand(len(rows), generator=draw, dtype=torch.float64) for rows in sets]
        found = largest_volume_of_each(sets, lengths, [30, 30, 30, 30])
        monkeypatch.setattr(recorded, "records", lambda tensor: False)
        assert same(found, largest_volume_of_each(sets, lengths, [30, 30, 30, 30]))
        monkeypatch.setattr(recorded, "records", lambda tensor: True)
    assert len(tapes) == 3


def test_nothing_is_recorded_on_a_cpu(tapes: list[Tape], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert not recorded.records(torch.zeros(1))
    [repeated(in_steps, vectors(seed), 20) for seed in range(4)]
    assert not tapes
