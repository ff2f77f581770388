"""Checks that show a method images again that it saw on a tiny model, as they were or changed. No model runs here."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace

import torch
from torch import Tensor

from vlmprune.core.method import Scorer
from vlmprune.core.roles import SelectsTogether
from vlmprune.core.view import Grid, ImageView, Merged, ModelInfo, Selection
from vlmprune.runtime.select import check_merged, check_selections
from vlmprune.testing.check import Failed, Noted, Skipped, check, in_words
from vlmprune.testing.families import FAMILIES
from vlmprune.testing.subject import Reading, Subject, cloned, mapped, same, tensors

_SHOWN = 3  # images shown again: one of each act, up to so many
_MANY = 16  # tokens of an image from which on a method must be seen to read what it declares


def shown(subject: Subject) -> list[ImageView]:
    """One recorded image of each act; `Skipped` where the method is shown none."""
    if not subject.selects:
        raise Skipped("its `select` is never called")
    if subject.refused:
        raise Skipped(f"it cannot prune this family: {subject.refused}")
    by_act: dict[int, ImageView] = {}
    for view in subject.seen:
        by_act.setdefault(view.act.number, view)
    if not by_act:
        raise Skipped("it was shown no image, since nothing had to go or it did not run")
    return list(by_act.values())[:_SHOWN]


def selected(view: ImageView, what: str) -> Selection:
    """What the method selects of an image, of which nothing may be wrong.

    Args:
        what: the image in a few words, for the sentence.
    """
    try:
        chosen = view.act.method.select(cloned(view))
    except Exception as error:  # a third party's method may raise anything
        raise Failed(f"expected {view.keep} of {view.n} tokens of {what}, but {in_words(error)} was raised") from error
    try:
        if isinstance(chosen, Merged):
            check_merged(view, chosen)
        elif not isinstance(chosen, Tensor) or chosen.dim() != 1 or chosen.is_floating_point():
            raise Failed(f"expected a row of whole numbers or Merged of {what}, but got {_described(chosen)}")
        else:
            check_selections([view], [chosen])
    except RuntimeError as error:
        raise Failed(f"expected {view.keep} distinct tokens of 0..{view.n - 1} of {what}, but {error}") from error
    return chosen


def _described(value: object) -> str:
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def budgets(view: ImageView) -> list[int]:
    """Budgets to try: one token, half, all but one; only its own where the image tells the method how many stay."""
    return sorted({1, view.keep, view.n // 2, view.n - 1}) if view.act.method.exact else [view.keep]


@check("`select` returns as many distinct indices as its budget says, for budgets of 1 to n - 1")
def budget(subject: Subject) -> None:
    for view in shown(subject):
        for keep in budgets(view):
            selected(replace(view, keep=keep), f"an image with a budget of {keep}")


@check("the same image gives the same tokens, whatever random numbers others draw")
def determinism(subject: Subject) -> None:
    for view in shown(subject):
        first = selected(view, "an image")
        torch.manual_seed(1 + torch.initial_seed() % 1000)
        if not same(first, selected(view, "the same image")):
            raise Failed("expected the same tokens of the same image twice, but they differ (see `view.generator()`)")


@check("of tokens that are all alike, those with the lower indices are kept")
def ties(subject: Subject) -> None:
    for view in shown(subject):
        alike, method = constant_view(view, 1.0), view.act.method
        chosen = selected(alike, "an image of which all tokens are alike")
        others = [replace(alike, seed=alike.seed + 1), elsewhere(alike)]
        free = any(not same(chosen, selected(other, "the same elsewhere")) for other in others)
        if isinstance(chosen, Merged) or not method.exact or free or order_matters(view):
            raise Skipped("what it keeps is also a matter of position, chance, merging or the image's own count")
        kept = chosen.sort().values.tolist()
        # A score keeps the first ones; a method that thins out what is alike at least begins with the first.
        due = view.keep if isinstance(method, Scorer) or ranks(view) else 1
        if kept[:due] != [*range(due)]:
            raise Failed(
                f"expected token{'s' * (due > 1)} 0{f' to {due - 1}' * (due > 1)} among the {view.keep} kept of "
                f"{view.n} that are all alike, but got {kept} (see `vlmprune.author.top_k`)"
            )


def elsewhere(view: ImageView) -> ImageView:
    """The same tokens at each other's places."""
    order = torch.randperm(view.n, generator=torch.Generator().manual_seed(0))
    return replace(view, slots=view.slots[order], cells=view.cells[order])


def ranks(view: ImageView) -> bool:
    """Whether the method orders tokens by a score of each, whichever others are there.

    Then one more in the budget adds one token, and the same one comes in where a kept token is gone.
    """
    if view.memory or view.keep + 1 >= view.n:  # what earlier acts noted may matter more than any score
        return False
    kept, more = (_chosen(replace(view, keep=keep)) for keep in (view.keep, view.keep + 1))
    if not kept < more:
        return False
    for gone in [*sorted(kept)[:3], min({*range(view.n)} - more)]:
        left = torch.tensor([token for token in range(view.n) if token != gone])
        if _chosen(view.only(left, view.keep), left) != (more - {gone} if gone in kept else kept):
            return False
    return True


def _chosen(view: ImageView, names: Tensor | None = None) -> set[int]:
    """Indices of the tokens that are kept, by other names where these are given; nothing where tokens are merged."""
    chosen = selected(view, "an image")
    if not isinstance(chosen, Tensor):
        return set()
    return {*(chosen if names is None else names[chosen]).tolist()}


def order_matters(view: ImageView) -> bool:
    """Whether the method keeps other tokens of an image where the same ones stand in another order."""
    order = torch.randperm(view.n, generator=torch.Generator().manual_seed(0))
    moved, here = selected(view.only(order, view.keep), "an image in another order"), selected(view, "an image")
    return not (isinstance(moved, Tensor) and isinstance(here, Tensor) and same(order[moved], here))


def constant_view(view: ImageView, value: float) -> ImageView:
    signals = {name: mapped(signal, lambda rows: _filled(rows, value)) for name, signal in view.signals.items()}
    return replace(cloned(view), signals=signals)


def _filled(rows: Tensor, value: float) -> Tensor:
    return torch.full_like(rows, value) if rows.is_floating_point() else rows


@check("an image whose signals are all equal, or all zero, gets its budget")
def constant(subject: Subject) -> None:
    for view in shown(subject):
        for value in (0.0, 1.0):
            selected(constant_view(view, value), f"an image whose signals are all {value:g}")


@check("signals with NaN or infinity in the row of a token, or everywhere, do not cost the budget")
def non_finite(subject: Subject) -> None:
    for view in shown(subject):
        for value in (float("nan"), float("inf"), float("-inf")):

            def spoiled(rows: Tensor, value: float = value) -> Tensor:
                rows = rows.clone()
                if rows.is_floating_point() and rows.dim():
                    rows[..., : 1 + rows.shape[-1] // 5] = value
                return rows

            signals = {name: mapped(signal, spoiled) for name, signal in view.signals.items()}
            selected(replace(cloned(view), signals=signals), f"an image with {value} in its signals")
            selected(constant_view(view, value), f"an image whose signals are all {value}")


@check("of an image of two tokens one can be kept")
def few_tokens(subject: Subject) -> None:
    for view in shown(subject):
        selected(view.only(torch.arange(2), 1), "an image with two tokens left")


@check("one frame alone gets its budget")
def one_frame(subject: Subject) -> None:
    views = [view for view in shown(subject) if view.grid is not None]
    if not views:
        raise Skipped("its images have no grid")
    for view in views:
        assert view.grid is not None
        tokens = (view.frames == view.frames[0]).nonzero().squeeze(1)
        if len(tokens) < 2:
            continue
        part = view.only(tokens, max(1, len(tokens) // 2))
        cells = torch.where(part.cells >= 0, part.cells % (view.grid.rows * view.grid.cols), -1)
        alone = replace(part, grid=Grid(view.grid.rows, view.grid.cols), cells=cells)
        selected(alone, f"one frame of {view.grid.rows} x {view.grid.cols} cells")


@check("a single row of an image, and an image with holes, get their budget")
def odd_shape(subject: Subject) -> None:
    for view in shown(subject):
        for tokens, what in _odd(view):
            if len(tokens) > 1:
                selected(view.only(tokens, max(1, len(tokens) // 2)), what)


def _odd(view: ImageView) -> Iterator[tuple[Tensor, str]]:
    yield torch.arange(0, view.n, 3), "an image of which every third token is left"
    if view.grid is not None:
        row = view.cells // view.grid.cols == view.cells.clamp(min=0).min() // view.grid.cols
        yield row.nonzero().squeeze(1), "a single row of an image"


@check("what the method is shown is the same after `select` as before")
def inputs_unchanged(subject: Subject) -> None:
    for view in shown(subject):
        own = cloned(view)
        view.act.method.select(own)
        before, after = _contents(view), _contents(own)
        for name, values in before.items():
            if not all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(values, after[name], strict=True)):
                raise Failed(f"expected that `select` leaves what it is shown alone, but it changed {name}")


def _contents(view: ImageView) -> dict[str, list[Tensor]]:
    signals = {f"the signal {name!r}": tensors(value) for name, value in view.signals.items()}
    return {"the slots": [view.slots], "the cells": [view.cells], **signals}


@check("one image leaves nothing behind in the method that another would meet")
def no_state(subject: Subject) -> None:
    for view in shown(subject):
        before = copy.deepcopy(vars(subject.method))
        first = selected(view, "an image")
        for other in subject.seen[:4]:
            selected(other, "another image")
        if not same(first, selected(view, "the first image again")):
            raise Failed("expected the same tokens of an image before and after others, but they differ")
        if repr(vars(subject.method)) != repr(before):
            changed = [name for name, value in vars(subject.method).items() if repr(before.get(name)) != repr(value)]
            raise Failed(
                f"expected that `select` leaves the method as it was, but it changed self.{changed[0]} (what an act "
                "knows of an image for the next one belongs in `view.memory`)"
            )


@check("of several images together each gets what it gets alone", after=("budget", "determinism"))
def together(subject: Subject) -> None:
    if not isinstance(subject.method, SelectsTogether):
        raise Skipped("it selects from one image at a time")
    for view in shown(subject):
        views = _as_large(view, subject.seen)
        alone, beside = [cloned(one) for one in views], [cloned(one) for one in views]
        due = [view.act.method.select(one) for one in alone]
        try:
            found = subject.method.select_together(beside)
        except Exception as error:  # a third party's method may raise anything
            raise Failed(f"expected {len(views)} selections together, but {in_words(error)} was raised") from error
        if len(found) != len(views):
            raise Failed(f"expected a selection of each of {len(views)} images together, but got {len(found)}")
        for number, (own, other) in enumerate(zip(due, found, strict=True)):
            if not same(own, other):
                raise Failed(f"expected image {number} of {len(views)} together to keep what it keeps alone")
        if any(not _rated_alike(*pair) for pair in zip(alone, beside, strict=True)):
            raise Failed(f"expected {len(views)} images together to be rated as each is alone")


def _as_large(view: ImageView, seen: list[ImageView]) -> list[ImageView]:
    """Images with as many tokens and the same budget, at the same act: those that there are, and this one turned."""
    size = view.act.number, view.n, view.keep
    found = [other for other in seen if (other.act.number, other.n, other.keep) == size][:_SHOWN]
    return [view.only(torch.arange(view.n).flip(0), view.keep), *found]


def _rated_alike(a: ImageView, b: ImageView) -> bool:
    if a.ratings is None or b.ratings is None:
        return a.ratings is b.ratings
    return torch.equal(a.ratings.nan_to_num(), b.ratings.nan_to_num())


@check("every act reads every signal that it declares, on each family", of="families")
def needs_read(subjects: list[Subject]) -> None:
    read: dict[tuple[ModelInfo, int, str], bool] = {}
    for subject in subjects:
        _ = subject.run
        for (number, name), here in subject.read.items():
            key = subject.adapter.info, number, name
            read[key] = read.get(key, False) or here or reads(subject, number, name)
    for (info, number, name), once in read.items():
        if once:
            continue
        words = f"that act {number} reads its signal {name!r} on {info.family}, but it does not, and it costs time"
        where = "ask for it where it is read alone: `needs(info)`, or `At(layer, needs=)` in `acts`"
        if all_shown(info, subjects):
            raise Failed(f"expected {words} ({where})")
        raise Noted(f"expected {words}; other images of this family may need it ({where})")


def reads(subject: Subject, number: int, name: str) -> bool:
    """Whether an act reads a signal of an image that it saw, under other budgets; or saw too few tokens to tell."""
    views = [view for view in subject.seen if view.act.number == number]
    for view in views:
        for keep in budgets(view):
            reading = Reading(view.signals)
            with suppress(Exception):  # which other checks tell
                view.act.method.select(replace(cloned(view), keep=keep, signals=reading))
            if name in reading.read:
                return True
    return bool(views) and max(view.n for view in views) < _MANY


def all_shown(info: ModelInfo, subjects: list[Subject]) -> bool:
    """Whether the checks have seen all that a family's images may be: its tiny models."""
    shown = [subject.ground for subject in subjects if subject.adapter.info.family == info.family]
    kinds = {one.family.name for one in shown if one.family is not None}
    due = {name for name, family in FAMILIES.items() if family.name in kinds}
    return bool(due) and due <= {one.name for one in shown}
