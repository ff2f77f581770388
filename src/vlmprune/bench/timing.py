"""One generation with a clock beside it: where its time goes, and the memory it takes.

Each generation encodes its own images. On a GPU the marks are events on its own queue, which nobody waits for until
the generation is over, so that decoding is not held up. What a method takes is read on the processor's clock: the queue
is empty when a method begins, and what it only queues counts as prefill.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from transformers import Cache, StoppingCriteria

import vlmprune
from vlmprune.bench.passes import tower_of, watched
from vlmprune.bench.turns import Counts, Turn
from vlmprune.core.recipe import Recipe


class Clock:
    """Marks in time on a device; what lies between them is known once `wait` has been called."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.on_gpu = device.type == "cuda"

    def mark(self) -> Any:
        if not self.on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    def wait(self) -> None:
        """Until the device has done all that it was given."""
        if self.on_gpu:
            torch.cuda.synchronize(self.device)

    def seconds(self, start: Any, end: Any) -> float:
        return start.elapsed_time(end) / 1e3 if self.on_gpu else end - start


class Ticks(StoppingCriteria):
    """Marks every new token, and stops nothing."""

    def __init__(self, clock: Clock) -> None:
        self.clock, self.marks = clock, list[Any]()

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        self.marks.append(self.clock.mark())
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


@torch.no_grad()
def generate(
    model: Any,
    inputs: Mapping[str, Any],
    recipe: Recipe | None,
    new_tokens: int,
    joules: Callable[[], float] | None = None,
    **session_options: Any,
) -> tuple[Turn, Counts]:
    """Generate with a clock.

    Args:
        model: a transformers vision-language model.
        inputs: what its processor returned, on the model's device; samples of equal shape.
        recipe: how to prune; None for the unpruned model.
        new_tokens: that are written, even past the end of the answer.
        joules: reads the energy counter (`bench.energy`).
        session_options: of `vlmprune.prune`.
    """
    clock = Clock(model.device)
    ticks, tower = Ticks(clock), tower_of(model)
    with contextlib.ExitStack() as stack:
        passes = stack.enter_context(watched(tower, patch_of(model.config)))
        spans = stack.enter_context(_spans(tower, clock))
        session = None
        if recipe is not None:
            stack.enter_context(_empty_queue(model, clock, ticks))
            session = stack.enter_context(vlmprune.prune(model, recipe, **session_options))
        clock.wait()
        used, start = joules and joules(), clock.mark()
        output = model.generate(
            **inputs,
            do_sample=False,
            min_new_tokens=new_tokens,
            max_new_tokens=new_tokens,
            stopping_criteria=[ticks],
            return_dict_in_generate=True,
        )
        clock.wait()
    turn = Turn(
        vision=sum(clock.seconds(*span) for span in spans),
        method=0.0 if session is None else session.last.seconds,
        ticks=tuple(clock.seconds(start, mark) for mark in ticks.marks),
        joules=None if joules is None or used is None else joules() - used,
    )
    slots = int((inputs["input_ids"][0] == model.config.image_token_id).sum())
    return turn, _counts(session, slots, tuple(passes), _kv_bytes(_cache_in(output)))


def _counts(session: Any, slots: int, passes: tuple[int, ...], kv_bytes: int) -> Counts:
    if session is None:
        return Counts(slots, slots, slots, (), passes, kv_bytes)
    stages = tuple((int(layer), int(counts[0])) for layer, counts in session.last.counts)
    resized = any(stage.method.stage == "pixels" for stage in session.recipe.stages)
    before, after = (int(count) for count in session.last.tokens[0])
    return Counts(before, after, stages[0][1] if resized and stages else slots, stages, passes, kv_bytes)


def patch_of(config: Any) -> int:
    """Side of a patch of a model's vision tower, in pixels."""
    size = config.vision_config.patch_size
    return size if isinstance(size, int) else size[0]


@contextlib.contextmanager
def _spans(module: nn.Module, clock: Clock) -> Iterator[list[list[Any]]]:
    """Marks before and after each forward of a module while the context is open."""
    spans: list[list[Any]] = []
    handles = [
        module.register_forward_pre_hook(lambda *_: spans.append([clock.mark()])),
        module.register_forward_hook(lambda *_: spans[-1].append(clock.mark())),
    ]
    try:
        yield spans
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def _empty_queue(model: Any, clock: Clock, ticks: Ticks) -> Iterator[None]:
    """Wait for the GPU where methods begin, before the first new token only: behind the tower, before each layer.

    Else a method that reads a number on the processor would be charged for the work queued before it.
    """

    def wait(*_: Any) -> None:
        if not ticks.marks:
            clock.wait()

    decoder = model.get_decoder()
    handles = [module.register_forward_pre_hook(wait) for module in (decoder, *decoder.layers)] if clock.on_gpu else []
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _cache_in(output: Mapping[str, Any]) -> Cache:
    """The cache, under whatever name this version of transformers returns it."""
    return next(value for value in output.values() if isinstance(value, Cache))


def _kv_bytes(cache: Any) -> int:
    tensors = (getattr(layer, name, None) for layer in cache.layers for name in ("keys", "values"))
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors if isinstance(tensor, torch.Tensor))


def peak_bytes(device: torch.device, run: Callable[[], object]) -> int:
    """The highest sum of live allocations during a run, beyond what was there before it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    from torch.profiler import ProfilerActivity, profile

    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else it reports its start and stop on stderr
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    # The CPU allocator keeps no peak, but the profiler notes each allocation and release.
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak
