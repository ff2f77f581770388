"""Asking a method about the images of a batch: those of one size together where it can, else one by one."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

from torch import Tensor

from vlmprune.core.roles import SelectsTogether
from vlmprune.core.view import ImageView
from vlmprune.scores.precision import unrounded

HELD = 1 << 30  # bytes of signals of images that wait for others

One = TypeVar("One")
Whole = TypeVar("Whole")


class Part(NamedTuple):
    """Tokens of an image that compete with each other.

    Attributes:
        tokens: their indices in `of`.
        keep: their budget.
        frame: the frame (or tile) that all of them are of, where that is what they have in common.
    """

    of: ImageView
    tokens: Tensor
    keep: int
    frame: int | None

    def view(self) -> ImageView:
        """What the method sees of them."""
        if self.frame is None and len(self.tokens) == self.of.n:
            return self.of
        part = self.of.only(self.tokens, self.keep, self.frame)
        return part if part.act.by_frame is None else replace(part, act=part.act.in_frame(self.keep))


# What becomes of one image: it gives parts of it, is sent what the method says of each, and may give others.
Asking = Generator[Sequence[Part], list[One], Whole]


def ask(
    views: Iterable[ImageView | None],
    about: Callable[[ImageView], Asking[One, Whole]],
    method: Callable[[list[ImageView]], list[One]],
) -> Iterator[Whole | None]:
    """What becomes of each image at one act, in order; None of those for which None is given.

    A method that `SelectsTogether` is asked once for all parts of the images that have the same number of tokens and
    the same budget. Images wait for that until their signals take `HELD` bytes. Any other method is asked part by part,
    and no image is read before the one in front of it is done.

    Args:
        about: the course of one image.
        method: asks it about views that it takes together.
    """
    for batch in _batches(views):
        running = {place: about(view) for place, view in enumerate(batch) if view is not None}
        found = _run(running, method)
        yield from (found.get(place) for place in range(len(batch)))


def _batches(views: Iterable[ImageView | None]) -> Iterator[list[ImageView | None]]:
    batch, held = list[ImageView | None](), 0
    for view in views:
        batch.append(view)
        if view is None:
            continue
        held += sum(_bytes(signal) for signal in view.signals.values())
        if held >= HELD or not isinstance(view.act.method, SelectsTogether):
            yield batch
            batch, held = [], 0
    if batch:
        yield batch


def _bytes(signal: Any) -> int:
    """Of all tensors in a signal."""
    if isinstance(signal, Tensor):
        return signal.nbytes
    return sum(map(_bytes, signal)) if isinstance(signal, tuple) else 0


def _run(running: dict[int, Asking[One, Whole]], method: Callable[[list[ImageView]], list[One]]) -> dict[int, Whole]:
    """Let all images take their course, each step of them at the same time."""
    found: dict[int, Whole] = {}
    said: dict[int, Any] = dict.fromkeys(running)
    while said:
        asked: dict[int, Sequence[Part]] = {}
        for place, answer in said.items():
            try:
                asked[place] = running[place].send(answer)
            except StopIteration as end:
                found[place] = end.value
        answers = iter(_by_size([part for parts in asked.values() for part in parts], method))
        said = {place: [next(answers) for _ in parts] for place, parts in asked.items()}
    return found


def _by_size(parts: Sequence[Part], method: Callable[[list[ImageView]], list[One]]) -> list[One]:
    """What the method says of each part; it is asked about those of one size together, if it can."""
    groups: dict[object, list[int]] = {}
    for place, part in enumerate(parts):
        own = part.of.act.method
        key = (id(own), len(part.tokens), part.keep) if isinstance(own, SelectsTogether) else place
        groups.setdefault(key, []).append(place)
    found: dict[int, One] = {}
    for places in groups.values():
        views = [parts[place].view() for place in places]
        with unrounded(views[0].slots.device):
            found.update(zip(places, method(views), strict=True))
    return [found[place] for place in range(len(parts))]
