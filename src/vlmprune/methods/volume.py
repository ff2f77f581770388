"""Greedy search for vectors that span the largest volume: the likeliest subset of a determinantal point process."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vlmprune.methods.diversity import is_here
from vlmprune.methods.recorded import repeated
from vlmprune.methods.volume_search import AheadSearch, Search

TRUSTED = 1e-3  # as a share of a vector's own d at the start: what is left below it may be float32's rounding


def largest_volume(rows: Tensor, lengths: Tensor, count: int) -> Tensor:
    """The greedy order in which vectors v make the determinant of their Gram matrix largest.

    v_i has the direction of row x_i and the length l_i. d_i = l_i^2 at first. Pick argmax d; with q the part of the
    pick that is orthogonal to all earlier picks, of length 1, subtract (v_i q)^2 from each d_i. Once the picks span
    all vectors, the longest of the others follow. Ties go to the lower index. Time O(n count D + count^2 D), memory
    O((n + count) D): there is no Gram matrix.

    This is done in float32, and again in float64 if a pick is so nearly spanned by earlier ones that float32 cannot
    tell what is left of it.

    Args:
        rows: x [n, D] float32; a row that is not finite counts as a zero vector.
        lengths: l [n], not negative.
        count: how many to pick, at most n.

    Returns:
        Indices in the order in which they are picked, [count].
    """
    return largest_volume_of_each([rows], [lengths], [count])[0]


@torch.no_grad()
def largest_volume_of_each(sets: Sequence[Tensor], lengths: Sequence[Tensor], counts: Sequence[int]) -> list[Tensor]:
    """What `largest_volume` gives of each of several sets; on a GPU those of one size are picked from in one loop.

    There, for sizes that come up again, the loop is a CUDA graph of torch's operations. It is no kernel of its own: one
    program would have to read n D numbers for each pick, and several have no sure way to wait for each other.
    """
    groups: dict[tuple[torch.Size, int], list[int]] = {}
    for place, (rows, count) in enumerate(zip(sets, counts, strict=True)):
        groups.setdefault((rows.shape, count), []).append(place)
    found: dict[int, Tensor] = {}
    for (_, count), places in groups.items():
        own = [sets[place] for place in places], [lengths[place] for place in places]
        found.update(zip(places, _of_one_size(*own, count), strict=True))
    return [found[place] for place in range(len(sets))]


def _of_one_size(sets: Sequence[Tensor], lengths: Sequence[Tensor], count: int) -> list[Tensor]:
    picks, real, sure = search(sets, lengths, count, sets[0].dtype)
    found = [*picks]
    unsure = (~(real & sure).all(1)).nonzero().squeeze(1).tolist()  # the one thing that is read, after the loop
    if unsure:
        own = [sets[place] for place in unsure], [lengths[place] for place in unsure]
        picks, real, _ = search(*own, count, torch.float64)
        for place, again, rank in zip(unsure, picks, real, strict=True):
            found[place] = _filled(again, rank, lengths[place])
    return found


def _filled(picks: Tensor, real: Tensor, lengths: Tensor) -> Tensor:
    """The picks that are `real` [count], and the longest of the other vectors instead of the rest."""
    free = lengths.scatter(0, picks, torch.where(real, -torch.inf, lengths[picks]))
    others = torch.sort(free, descending=True, stable=True).indices
    return torch.where(real, picks, others[((~real).cumsum(0) - 1).clamp(min=0)])


def search(
    sets: Sequence[Tensor], lengths: Sequence[Tensor], count: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """The picks of each set, whether more than rounding was left of each, and enough for float32; [B, count]."""
    if is_here(sets[0]):
        alone = [_outcome(AheadSearch(rows.to(dtype), long.to(dtype), count)) for rows, long in zip(sets, lengths)]
        picks, real, sure = (torch.cat(parts) for parts in zip(*alone, strict=True))
    else:
        picks, real, sure = repeated(in_steps, [own.to(dtype) for own in (*sets, *lengths)], count)
    return picks, real, sure


def in_steps(vectors: Sequence[Tensor], count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The same of sets and their lengths, given one after the other, without reading a number."""
    sets, lengths = vectors[: len(vectors) // 2], vectors[len(vectors) // 2 :]
    return _outcome(Search(sets, lengths, count))


def _outcome(search: Search) -> tuple[Tensor, Tensor, Tensor]:
    search.run()
    return search.picks, search.real, search.lefts > TRUSTED * search.whole.gather(1, search.picks)
