"""Showing images to methods and checking what they return."""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from vlmprune.core.act import Act
from vlmprune.core.budget import Keeps, resolve_keep
from vlmprune.core.errors import UserError
from vlmprune.core.fates import Fate, Step
from vlmprune.core.fusion import layers_before
from vlmprune.core.method import Method, PixelMethod
from vlmprune.core.plan import acts_of
from vlmprune.core.recipe import Recipe
from vlmprune.core.roles import (
    Fusing,
    NamesParts,
    Observes,
    OrdersParts,
    SelectsTogether,
    all_kinds,
)
from vlmprune.core.view import ImageView, Merged, ModelInfo, Selection, frames_of
from vlmprune.models.base import Adapter
from vlmprune.runtime.flow import Prompt, PromptImage
from vlmprune.runtime.prompt_reading import Picked, prompt_signals
from vlmprune.runtime.prompt_text import ImageText
from vlmprune.runtime.together import Asking, Part, ask
from vlmprune.runtime.vision import ImageTokens
from vlmprune.scores.precision import unrounded

One = TypeVar("One")


@dataclass
class SoFar:
    """What the acts of one stage have known of one image until now.

    Attributes:
        reached: tokens that reached the first of them.
        memory: what the method noted.
    """

    reached: int = 0
    memory: dict[str, object] = field(default_factory=dict)


@dataclass
class Known:
    """What the acts of a recipe are told of one image beside its tokens.

    Attributes:
        text: around it.
        seed: of the prompt and the image.
        so_far: what the acts of each stage of the recipe have known of it.
        fate: what the acts did to its tokens; None of a sample's further beams, which are not reported.
    """

    text: ImageText
    seed: int
    so_far: defaultdict[int, SoFar] = field(default_factory=lambda: defaultdict(SoFar))
    fate: Fate | None = None

    def note(self, step: Step | None) -> None:
        """Add what an act did; None where it left everything as it was."""
        if self.fate is not None:
            self.fate.steps.append(step)


class Choice(NamedTuple):
    """What a method selects at an act.

    Attributes:
        selection: kept indices in increasing order, or merged tokens.
        parts: of a method that `NamesParts`, the indices of each kind.
        ratings: [n] how important the method found each token, where it says so.
    """

    selection: Selection
    parts: dict[str, Tensor]
    ratings: Tensor | None = None

    def step(self, before: Tensor, after: Tensor) -> Step:
        """For the report: what was chosen of the tokens at the slots `before` [n], now at the slots `after` [m]."""
        parts = {name: before[tokens] for name, tokens in self.parts.items()}
        if isinstance(self.selection, Merged):
            made = self.selection
            return Step(before, after, made.anchors, True, made.members, parts, self.ratings)
        return Step(before, after, self.selection, parts=parts, ratings=self.ratings)


def fused_layers(adapter: Adapter, acts: Mapping[int, Act]) -> dict[int, int]:
    """Decoder layers whose attention is fused, and the layer before which what is fused there is removed.

    The two before a cut, or what has an attention map of them; a layer before two cuts is fused for the first.
    """
    layers: dict[int, int] = {}
    for cut in sorted(acts):
        if acts[cut].fusion is None:
            continue
        attending = [layer for layer in layers_before(cut) if adapter.layer_kind(layer) != "linear_attention"]
        if not attending:
            adapter.decoder_attention(cut - 1)  # says what is missing
        for layer in attending:
            layers.setdefault(layer, cut)
    return layers


def check_budgets(recipe: Recipe, prompt: Prompt, info: ModelInfo) -> None:
    """Raise UserError where budgets for each image, or each frame of a video, do not fit those of a prompt."""
    images = dict(zip(prompt.samples, prompt.rows, strict=True))  # beams repeat a sample's row
    counts, frames = [len(row) for row in images.values()], [_frames_of_one(row) for row in images.values()]
    for stage in recipe.stages:
        if not isinstance(stage.keep, Keeps):
            continue
        stage.keep.check(counts, frames)
        for sample, (count, parts) in enumerate(zip(counts, frames, strict=True)):
            if stage.keep.for_frames(sample, count, parts):  # whether the method can
                acts_of(stage.method, stage.keep.at(sample, 0, count), info, budget=stage.budget)
        if not isinstance(stage.method, PixelMethod):
            continue
        used = [image.tokens.keep for row in images.values() for image in row]
        due = [stage.keep.at(sample, at, len(row)) for sample, row in images.items() for at in range(len(row))]
        if used != due:  # images and videos are encoded apart, and neither knows where the other stands
            raise UserError(
                f"{stage} cannot tell which budget is whose where images and videos are mixed: give all the same one."
            )


def _frames_of_one(row: Sequence[PromptImage]) -> int:
    """The frames of a sample's one video; 0 where it has something else, or nobody knows the frames."""
    tokens = row[0].tokens if len(row) == 1 else None
    return tokens.grid.frames if tokens is not None and tokens.video and tokens.grid is not None else 0


def prompt_seed(seed: int, ids: Tensor | None, number: int) -> int:
    """A seed for one image of a prompt: the same in any batch, on any device, for every beam."""
    digest = zlib.crc32(ids.to("cpu", torch.int64).numpy().tobytes()) if ids is not None else 0
    return (seed * 1_000_003 + digest + 7919 * number) % (1 << 63)


def view_of(act: Act, image: ImageTokens, now: Picked, keep: int, known: Known) -> ImageView:
    """What an act is shown of an image of which these tokens are there, without the signals of decoder layers."""
    signals, cells = prompt_signals(act, image, known.text, now), image.cells(now.slots)
    memory = known.so_far[act.stage].memory
    return ImageView(keep, now.slots, image.grid, act.info, signals, known.seed, cells, image.count, memory, act)


def due_of(act: Act, image: ImageTokens, slots: Tensor, reached: int) -> int:
    """How many tokens an act, taken `of` the image, keeps of those in these slots.

    Args:
        reached: how many reached the method's first act.
    """
    cells = image.cells(slots)
    outside = int(((cells < 0) & (slots >= 0)).sum()) if act.keeps_blanks else 0
    if act.by_frame is None:
        return act.budget(len(slots) - outside, reached - outside) + outside
    assert image.grid is not None  # `Act.frames` has checked it
    cells = cells[cells >= 0]
    sizes = torch.bincount(frames_of(cells, image.grid), minlength=image.grid.frames).tolist()
    due = sum(resolve_keep(keep, size) for keep, size in zip(act.by_frame.keeps, sizes, strict=True))
    return due + outside if due < len(cells) else len(slots)


def observe(view: ImageView) -> None:
    """Show the image, whole, to a method that looks at every one."""
    if isinstance(view.act.method, Observes):
        with unrounded(view.slots.device):
            view.act.method.observe(view)


def choose(view: ImageView) -> Selection:
    """What is selected of one image: kept indices in increasing order, or merged tokens."""
    [choice] = choices_of([view])
    assert choice is not None
    return choice.selection


def choices_of(views: Iterable[ImageView | None]) -> Iterator[Choice | None]:
    """What the methods select at one act of each image, checked; None of those for which None is given.

    Tokens without a patch may be hidden from the method, and frames may compete apart.
    """
    return ask(views, _choice, _selected)


def _choice(view: ImageView) -> Asking[Choice, Choice]:
    method = view.act.method
    if view.act.keeps_blanks and bool(view.blank.any()):
        return (yield from _beside_blanks(view))
    shown = _shown(view)
    if _counts_itself(method):  # which of those that show a patch stay is its own business
        view = replace(view, keep=max(1, len(shown) - 1))
    if len(shown) <= view.keep:  # everything that shows a patch stays, and the first of the others
        others = torch.ones(view.n, dtype=torch.bool, device=shown.device)
        others[shown] = False
        rest = others.nonzero().squeeze(1)[: view.keep - len(shown)]
        return Choice(torch.sort(torch.cat([shown, rest])).values, {})
    parts = _competing(view, shown)
    some = [part for part in parts if 0 < part.keep < len(part.tokens)]
    whole = [part for part in parts if part.keep == len(part.tokens)]
    chosen = yield some
    if any(isinstance(choice.selection, Merged) for choice in chosen):
        chosen += yield whole  # a method that merges makes the tokens of a frame it keeps whole too
    else:
        chosen += [Choice(torch.arange(part.keep, device=part.tokens.device), {}) for part in whole]
    found = [(part.tokens, choice, part.frame or 0) for part, choice in zip([*some, *whole], chosen, strict=True)]
    if len(found) > 1:
        found.sort(key=lambda part: int(part[0][0]))
    return _together(method, view, found) if found else Choice(shown[:0], {})


def _beside_blanks(view: ImageView) -> Asking[Choice, Choice]:
    """All slots without a patch, and what the method selects of the other tokens."""
    blank = view.blank
    rest = (~blank).nonzero().squeeze(1)
    others = view.only(rest, view.keep - int(blank.sum()))
    chosen, parts, ratings = yield from _choice(replace(others, act=replace(view.act, keeps_blanks=False)))
    assert isinstance(chosen, Tensor)  # `core.plan` has refused methods that merge
    kept = torch.sort(torch.cat([blank.nonzero().squeeze(1), rest[chosen.to(rest.device)]])).values
    named = {name: rest[tokens.to(rest.device)] for name, tokens in parts.items()}
    return Choice(kept, named, _laid_over([(rest, ratings)], view.n))


def candidates_of(views: Iterable[ImageView | None]) -> Iterator[Tensor | None]:
    """What a method that fuses gives up last of each image, of the same parts in which it selects.

    Indices in increasing order; None of images for which None is given.
    """
    return ask(views, _candidates, _candidates_named)


def _candidates(view: ImageView) -> Asking[Tensor, Tensor]:
    shown = _shown(view)
    parts = _competing(view, shown) if len(shown) > view.keep else []
    parts = [part for part in parts if 0 < part.keep < len(part.tokens)]
    named = yield parts
    found = [shown[:0], *(part.tokens[own.to(part.tokens.device)] for part, own in zip(parts, named, strict=True))]
    candidates = torch.sort(torch.cat(found)).values
    if bool((candidates.diff() == 0).any()):
        raise RuntimeError(f"{view.act.method.name} named a token twice among its candidates for fusion")
    return candidates


def _candidates_named(views: list[ImageView]) -> list[Tensor]:
    method = views[0].act.method
    assert isinstance(method, Fusing)
    return _one_each(method, views, method.candidates_together(views))


def _counts_itself(method: Method) -> bool:
    """Whether the image tells the method how many tokens stay, whatever the budget."""
    return not (method.budgeted or method.exact)


def _shown(view: ImageView) -> Tensor:
    """The tokens that the method sees: all, or those that show a patch."""
    if view.act.sees_every_slot:
        return torch.arange(view.n, device=view.slots.device)
    return (view.cells >= 0).nonzero().squeeze(1)


def _competing(view: ImageView, shown: Tensor) -> list[Part]:
    """The parts of an image, of the tokens `shown`, that compete each by itself."""
    if view.act.pool == "image" or view.grid is None or view.grid.frames == 1:
        return [Part(view, shown, view.keep, None)]
    frames = view.frames[shown]
    numbers, sizes = (values.tolist() for values in torch.unique(frames, return_counts=True))
    if view.act.by_frame is not None:
        budgets = [resolve_keep(view.act.by_frame.keeps[frame], size) for frame, size in zip(numbers, sizes)]
    elif _counts_itself(view.act.method):
        budgets = [max(1, size - 1) for size in sizes]
    else:
        budgets = shares(sizes, view.keep)
    return [Part(view, shown[frames == number], keep, number) for number, keep in zip(numbers, budgets, strict=True)]


def shares(sizes: list[int], keep: int) -> list[int]:
    """Spread `keep` over parts of these sizes, in proportion; where it does not divide, evenly over their order."""
    total, given, before, budgets = sum(sizes), 0, 0, []
    for size in sizes:
        before += size
        budgets.append(keep * before // total - given)
        given += budgets[-1]
    return budgets


def _together(method: Method, view: ImageView, found: list[tuple[Tensor, Choice, int]]) -> Choice:
    """Choices among parts of an image's tokens (with the number of their frame) as one choice among all."""
    parts: dict[str, list[Tensor]] = {}
    for tokens, choice, _ in found:
        for name, own in choice.parts.items():
            parts.setdefault(name, []).append(tokens[own.to(tokens.device)])
    named = {name: torch.cat(values) for name, values in parts.items()}
    ratings = _laid_over([(tokens, choice.ratings) for tokens, choice, _ in found], view.n)
    merged = [(tokens, one.selection, frame) for tokens, one, frame in found if isinstance(one.selection, Merged)]
    if merged:
        return Choice(_merged_together(method, view, merged), named, ratings)
    kept = [tokens[one.selection.to(tokens.device)] for tokens, one, _ in found if isinstance(one.selection, Tensor)]
    return Choice(torch.sort(torch.cat(kept)).values, named, ratings)


def _laid_over(found: Sequence[tuple[Tensor, Tensor | None]], count: int) -> Tensor | None:
    """[count] the ratings of parts of an image's tokens, not a number for the others; None where none has any."""
    laid: Tensor | None = None
    for tokens, ratings in found:
        if ratings is not None:
            laid = torch.full((count,), torch.nan, device=tokens.device) if laid is None else laid
            laid[tokens] = ratings.to(laid)
    return laid


def _merged_together(method: Method, view: ImageView, found: list[tuple[Tensor, Merged, int]]) -> Merged:
    anchors, unchanged = [], []
    members = torch.full((view.n,), -1, device=view.slots.device)
    before = 0
    for tokens, made, _ in found:
        own = made.anchors.to(tokens.device)
        anchors.append(torch.where(own >= 0, tokens[own.clamp(min=0)], -1))
        new = torch.zeros_like(own, dtype=torch.bool)
        unchanged.append(new if made.unchanged is None else made.unchanged.to(own.device))
        if made.members is not None:
            into = made.members.to(tokens.device)
            members[tokens] = torch.where(into >= 0, into + before, -1)
        before += len(own)
    features = torch.cat([made.features for _, made, _ in found])
    told = members if all(made.members is not None for _, made, _ in found) else None
    whole = Merged(features, torch.cat(anchors), found[-1][1].space, torch.cat(unchanged), told)
    parts = {frame: own for (_, _, frame), own in zip(found, anchors, strict=True)}
    order = method.reading_order(view, parts) if isinstance(method, OrdersParts) else None
    return whole if order is None else whole.ordered(order)


def _selected(views: list[ImageView]) -> list[Choice]:
    """What a method selects of images (or parts of them) of one size, checked."""
    method = views[0].act.method
    parts: list[dict[str, Tensor]] = [{} for _ in views]
    chosen: list[Selection]
    if isinstance(method, NamesParts):
        parts = [dict(method.named(view)) for view in views]
        chosen = [all_kinds(named) for named in parts]
    elif isinstance(method, SelectsTogether):
        chosen = _one_each(method, views, method.select_together(views))
    else:
        chosen = [method.select(view) for view in views]
    chosen = _checked(views, chosen)
    return [Choice(one, own, _ratings_of(view)) for one, own, view in zip(chosen, parts, views, strict=True)]


def _checked(views: list[ImageView], chosen: Sequence[Selection]) -> list[Selection]:
    indices = [one for one in chosen if not isinstance(one, Merged)]
    if len(indices) == len(chosen):
        return [*check_selections(views, indices)]
    checked: list[Selection] = []
    for view, one in zip(views, chosen, strict=True):
        if isinstance(one, Merged):
            check_merged(view, one)
            checked.append(one)
        else:
            checked += check_selections([view], [one])
    return checked


def _one_each(method: Method, views: list[ImageView], found: Sequence[One]) -> list[One]:
    if len(found) != len(views):
        raise RuntimeError(f"{method.name} was shown {len(views)} images together and answered for {len(found)}")
    return list(found)


def _ratings_of(view: ImageView) -> Tensor | None:
    """What the method noted of each token while it chose; a wrong shape is a bug in the method."""
    if view.ratings is not None and view.ratings.shape != view.slots.shape:
        shape = tuple(view.ratings.shape)
        raise RuntimeError(
            f"{view.act.method.name} rated tokens with a tensor of shape {shape}, and saw {view.n} tokens"
        )
    return None if view.ratings is None else view.ratings.detach()


def check_selections(views: Sequence[ImageView], chosen: Sequence[Tensor]) -> list[Tensor]:
    """The kept indices of images of one size, in increasing order; what breaks the contract is a bug in the method."""
    method, n, keep = views[0].act.method, views[0].n, views[0].keep
    for one in chosen:
        if one.dim() != 1:
            raise RuntimeError(
                f"{method.name} returned a tensor of shape {tuple(one.shape)} where {keep} indices were due"
            )
    if len({len(one) for one in chosen}) > 1:
        return [check_selections([view], [one])[0] for view, one in zip(views, chosen, strict=True)]
    rows = torch.stack([one.to(views[0].slots.device, torch.long) for one in chosen]).sort(dim=1).values
    count = rows.shape[1]
    exact, enough = count == keep or not method.exact, count >= method.least
    right = (rows.diff(dim=1) > 0).all() & (rows[:, :1] >= 0).all() & (rows[:, -1:] < n).all()
    if not (exact and enough and bool(right)):  # one number is read, for which a GPU must be waited for
        raise RuntimeError(f"{method.name} returned {count} indices where {keep} distinct ones of 0..{n - 1} were due")
    return [*rows]


def check_merged(view: ImageView, merged: Merged) -> None:
    """Raise where merged tokens break the contract."""
    method, count = view.act.method, len(merged.features)
    if not method.merges:
        raise RuntimeError(f"{method.name} returned merged tokens without saying that it `merges`")
    fits = len(merged.anchors) == count and count > 0 and bool((merged.anchors < view.n).all())
    if not fits or (count != view.keep and method.exact):
        raise RuntimeError(
            f"{method.name} returned {count} merged tokens with {len(merged.anchors)} anchors; {view.keep} were due"
        )
    if merged.members is not None and merged.members.shape != view.slots.shape:
        raise RuntimeError(f"{method.name} says of {len(merged.members)} tokens what they went into, and saw {view.n}")
