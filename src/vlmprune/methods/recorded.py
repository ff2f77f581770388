"""A loop of many small operations as one CUDA graph: a GPU is sent them once, and repeats them for other numbers."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor

Work = Callable[[Sequence[Tensor], int], Sequence[Tensor]]
KEPT = 8  # shapes that are remembered, with a graph or without
ROOM = 1 << 29  # bytes of the inputs of all graphs; what the work itself holds comes on top

_ONE = threading.Lock()  # no two recordings at a time in a process


class Recording:
    """Work in memory of its own, as its graph reads and writes the same places each time.

    Attributes:
        bytes: of the inputs.
    """

    def __init__(self, work: Work, inputs: Sequence[Tensor], count: int) -> None:
        self.bytes = size(inputs)
        with torch.inference_mode(False), torch.no_grad():  # what is made in inference mode cannot be filled outside
            self.inputs = [given.clone() for given in inputs]
            with _ONE:
                self.replay, self.outputs = record(lambda: work(self.inputs, count), queue(inputs[0]))

    def __call__(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        for own, given in zip(self.inputs, inputs, strict=True):
            own.copy_(given)
        self.replay()
        return [own.clone() for own in self.outputs]


class _Seen(threading.local):
    """Of one thread, as two that filled the inputs of one recording would mix them up."""

    def __init__(self) -> None:
        self.works = True
        self.shapes: dict[Hashable, Recording | None] = {}  # the latest last
        self.sides: dict[torch.cuda.Stream, torch.cuda.Stream] = {}  # in which is recorded what is for a queue

    def note(self, shape: Hashable, recording: Recording | None) -> None:
        self.shapes.pop(shape, None)
        self.shapes[shape] = recording
        while len(self.shapes) > KEPT or sum(own.bytes for own in self.shapes.values() if own) > ROOM:
            del self.shapes[next(iter(self.shapes))]


_SEEN = _Seen()


def repeated(work: Work, inputs: Sequence[Tensor], count: int) -> Sequence[Tensor]:
    """What `work` gives of inputs and a count; on a GPU, from the third time on for the same shapes, by a CUDA graph.

    The first time for a shape is as if there were no graphs, and is what a graph needs before it (libraries start up).
    The second time a graph is recorded, and kept only if it gives the very same; this, alone, waits for the GPU. So
    images of ever new sizes are not recorded. Where no graph can be recorded, a warning says so, once in a thread.

    Args:
        work: a function of nothing but its arguments that reads no number.
    """
    if not records(inputs[0]) or not _SEEN.works or size(inputs) > ROOM:
        return work(inputs, count)
    shape = _shape(work, inputs, count)
    recording = _SEEN.shapes.get(shape)
    if recording is not None:
        _SEEN.note(shape, recording)
        return recording(inputs)
    found, again = work(inputs, count), shape in _SEEN.shapes
    _SEEN.note(shape, _proven(work, inputs, count, found) if again else None)
    return found


def is_recorded(work: Work, inputs: Sequence[Tensor], count: int) -> bool:
    """Whether `repeated` would replay a graph."""
    return records(inputs[0]) and _SEEN.shapes.get(_shape(work, inputs, count)) is not None


def _shape(work: Work, inputs: Sequence[Tensor], count: int) -> Hashable:
    shapes = tuple((given.shape, given.dtype) for given in inputs)
    return work, count, shapes, queue(inputs[0]), settings(inputs[0].device.type)


def _proven(work: Work, inputs: Sequence[Tensor], count: int, due: Sequence[Tensor]) -> Recording | None:
    try:
        recording = Recording(work, inputs, count)
        if not all(map(torch.equal, recording(inputs), due)):
            raise ArithmeticError("it picks otherwise")
    except Exception as error:
        _SEEN.works = False
        logging.getLogger("vlmprune").warning(
            "Greedy searches are sent to the GPU step by step, as a CUDA graph of one does not work here: %s", error
        )
        return None
    return recording


def size(tensors: Sequence[Tensor]) -> int:
    return sum(own.nbytes for own in tensors)


def records(tensor: Tensor) -> bool:
    """Whether there are graphs for it, which there are on a GPU."""
    return tensor.is_cuda


def queue(tensor: Tensor) -> torch.cuda.Stream:
    """That of the GPU in which the work now stands; what stands in two queues is done in no order."""
    return torch.cuda.current_stream(tensor.device)


def settings(device: str) -> Hashable:
    """Those by which products are rounded; a graph has them as they were."""
    precision = torch.backends.cuda.matmul.fp32_precision
    return precision, torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)


def record(run: Callable[[], Sequence[Tensor]], here: torch.cuda.Stream) -> tuple[Callable[[], None], Sequence[Tensor]]:
    """A graph's replay in the queue `here`, and the tensors that it writes. Other threads may go on meanwhile.

    What is replayed in one queue is recorded in one other: cuBLAS has a workspace for each, so graphs that share one
    never run at the same time, and there are no more workspaces than queues.
    """
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.device(here.device):
        if here not in _SEEN.sides:
            _SEEN.sides[here] = torch.cuda.Stream()
        recorder = torch.cuda.graph(graph, stream=_SEEN.sides[here], capture_error_mode="thread_local")
        # The outer context brings the present queue back, also where the inner one fails in the middle.
        with torch.cuda.stream(here), recorder:
            outputs = run()
    return graph.replay, outputs
