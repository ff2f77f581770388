"""How the greedy search for the largest volume goes: one vector of each set at a time, or many together on a CPU."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

FLOOR = 1e-10  # as a share of the largest d: below it, only rounding is left
AHEAD = (16, 64)  # the fewest and the most rows of the Gram matrix that are computed together on a CPU


class Search:
    """Greedy searches in B sets of n vectors, side by side, that read no number.

    For each pick, one row of its set's Gram matrix is worked out. Products are made set by set, so that a set's are
    rounded as if it were alone; everything else is done to the numbers of all sets at once.

    Attributes:
        whole: [B, n] d at the start.
        left: [B, n] d now; minus infinity for picks.
        floor: [B, 1] below it, d is rounding.
        basis: [B, count, D] the orthonormal q of the picks; 0 where nothing was left of a pick.
        picks: [B, count] indices in the order in which they were picked.
        lefts: [B, count] what was left of their d; 0 if nothing.

    Args:
        sets: x [n, D] of each.
        lengths: l [n] of each.
    """

    def __init__(self, sets: Sequence[Tensor], lengths: Sequence[Tensor], count: int) -> None:
        self.sets, self.count, norms = sets, count, torch.stack([rows.norm(dim=1) for rows in sets])
        self.weights = (torch.stack([*lengths]) / norms.clamp(min=torch.finfo(norms.dtype).tiny)).nan_to_num_(0, 0, 0)
        self.whole = (self.weights * norms).square_().nan_to_num_(0, 0, 0)
        self.left = self.whole.clone()
        self.floor = FLOOR * self.whole.amax(1, keepdim=True)
        self.basis = norms.new_zeros(len(sets), count, sets[0].shape[1])
        self.picks = torch.zeros(len(sets), count, dtype=torch.long, device=norms.device)
        self.lefts = norms.new_zeros(len(sets), count)

    @property
    def real(self) -> Tensor:
        """[B, count] whether more than rounding was left of each pick."""
        return self.lefts > self.floor

    def run(self) -> None:
        for step in range(self.count):
            pick = self.left.argmax(1, keepdim=True)
            free = self.free(pick, step)
            row = self.products(free)[:, 0]
            left, square = self.left.gather(1, pick), row.gather(1, pick)
            real = (left > self.floor) & (square > 0)
            part = torch.where(real, row * square.rsqrt(), 0)
            self.picks[:, step : step + 1], self.lefts[:, step : step + 1] = pick, torch.where(real, left, 0)
            self.basis[:, step] = torch.where(real, free[:, 0] * square.rsqrt(), 0)
            self.left.addcmul_(part, part, value=-1).scatter_(1, pick, -torch.inf)

    def free(self, chosen: Tensor, done: int) -> Tensor:
        """[B, m, D] what of these vectors [B, m] is orthogonal to the first `done` picks of their set."""
        rows = torch.stack([own.index_select(0, at) for own, at in zip(self.sets, chosen, strict=True)])
        free = (rows * self.weights.gather(1, chosen)[:, :, None]).nan_to_num_(0, 0, 0)
        basis = self.basis[:, :done]
        passes = 2 if free.dtype == torch.float64 else 1  # the second removes what rounding left of the first
        for _ in range(passes if done else 0):
            free = torch.stack([torch.addmm(own, own @ q.T, q, alpha=-1) for own, q in zip(free, basis, strict=True)])
        return free

    def products(self, free: Tensor) -> Tensor:
        """[B, m, n] of what is free of m vectors with all vectors of their set."""
        found = torch.stack([own @ rows.T for own, rows in zip(free, self.sets, strict=True)])
        return found.mul_(self.weights[:, None]).nan_to_num_(0, 0, 0)


class AheadSearch(Search):
    """The same of one set on a CPU, where a product with many rows takes little longer than one with a single row.

    So the vectors of which most is left are worked out together, and picked from until another one is due. To know
    when is to read a number at each step; a GPU would have to wait for it.

    Attributes:
        ready: numbers of the vectors that are worked out and not yet picked.
        loose: [m, D] what of these is orthogonal to all picks.
        table: [m, n] products of that with all vectors.
    """

    def __init__(self, rows: Tensor, lengths: Tensor, count: int) -> None:
        super().__init__([rows], [lengths], count)
        self.ready: list[int] = []
        self.loose, self.table = rows[:0], rows.new_empty(0, len(rows))

    def run(self) -> None:
        done, ahead = 0, AHEAD[0]
        while done < self.count:
            self.work_out(ahead, done)
            used = self.pick_from(done)
            done, ahead = done + used, min(max(AHEAD[0], used), AHEAD[1], 2 * (self.count - done - used))

    def work_out(self, ahead: int, done: int) -> None:
        """Work out the `ahead` vectors of which most is left, of those that are not `ready`."""
        left = self.left[0].numpy().copy()
        left[self.ready] = -np.inf
        fresh = np.argsort(-left, kind="stable")[: min(ahead, len(left) - done - len(self.ready))]
        free = self.free(torch.from_numpy(fresh)[None], done)
        self.ready += fresh.tolist()
        self.loose = torch.cat([self.loose, free[0]])
        self.table = torch.cat([self.table, self.products(free)[0]])

    def pick_from(self, done: int) -> int:
        """Pick until a vector is due that is not `ready`; how many were picked."""
        table, left, floor = self.table.numpy(), self.left[0].numpy(), float(self.floor)
        chosen, lefts = self.picks[0].numpy(), self.lefts[0].numpy()
        places = {number: place for place, number in enumerate(self.ready)}
        parts = np.empty((min(len(table), self.count - done), len(left)), table.dtype)
        picks: list[int] = []
        while len(picks) < len(parts) and (pick := int(left.argmax())) in places:
            step = len(picks)
            row = table[places[pick]] - parts[:step, pick] @ parts[:step]
            real = left[pick] > floor and row[pick] > 0
            parts[step] = row / math.sqrt(row[pick]) if real else 0
            chosen[done + step], lefts[done + step] = pick, left[pick] if real else 0
            left -= parts[step] * parts[step]
            left[pick] = -np.inf
            picks.append(pick)
        self.take([places[pick] for pick in picks], picks, torch.from_numpy(parts[: len(picks)]), done)
        return len(picks)

    def take(self, places: list[int], picks: list[int], parts: Tensor, done: int) -> None:
        """Move picks from the `ready` to the basis; `parts` [used, n] is what all vectors have of each pick's q."""
        square = parts[:, picks].T.tril()
        own = square.diagonal()
        own[own == 0] = 1  # nothing was left of it
        inverse = torch.linalg.solve_triangular(square, torch.eye(len(picks)).to(square), upper=False)
        basis = torch.mm(inverse, self.loose[places], out=self.basis[0, done : done + len(picks)])
        stay = sorted(set(range(len(self.ready))) - set(places))
        self.ready = [self.ready[place] for place in stay]
        shares = parts[:, self.ready].T
        self.loose = torch.addmm(self.loose[stay], shares, basis, alpha=-1)
        self.table = torch.addmm(self.table[stay], shares, parts, alpha=-1)
