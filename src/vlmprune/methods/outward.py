"""VLM-Pruner's search from a few tokens outwards, near ones first, and the merging of what it leaves."""

from __future__ import annotations

import torch
from torch import Tensor

from vlmprune.methods.members import owned

BUFFER = 0.5  # how much more redundant a token is that lies across the whole picture
OWN = 0.3  # what a kept token keeps of itself where dropped ones are merged into it
STEP = 0.1  # by which the threshold rises from round to round


class Outward:
    """The tokens chosen so far, and how redundant each other token is beside them.

    Attributes:
        chosen: indices in the order of choice.

    Args:
        likeness: [n, n] cosines.
        distance: [n, n] on the grid, as a share of its diagonal.
        first: the tokens to begin with.
        keep: the budget.
    """

    def __init__(self, likeness: Tensor, distance: Tensor, first: Tensor, keep: int) -> None:
        self.likeness, self.distance, self.keep = likeness, distance, keep
        self.chosen = first[:0]
        self.free = torch.ones(len(likeness), dtype=torch.bool, device=likeness.device)
        self.most_alike = likeness.new_full((len(likeness),), float("-inf"))  # of each token to a chosen one
        self.nearest = likeness.new_full((len(likeness),), float("inf"))
        self._add(first)

    def _add(self, tokens: Tensor) -> None:
        if not len(tokens):
            return
        self.chosen = torch.cat([self.chosen, tokens])
        self.free[tokens] = False
        self.most_alike = torch.maximum(self.most_alike, self.likeness[:, tokens].amax(1))
        self.nearest = torch.minimum(self.nearest, self.distance[:, tokens].amin(1))

    def redundancy(self, tokens: Tensor) -> Tensor:
        """[m] r of these tokens beside those chosen by now."""
        return (1 + BUFFER * self.nearest[tokens]) * self.most_alike[tokens]

    def rounds(self, threshold: float, batch: int) -> None:
        """Choose in rounds, until the budget is met or a round adds nothing.

        A round goes through the free tokens by rising redundancy, `batch` at a time, and adds those below its
        threshold. It ends early if its first batch adds nothing.
        """
        before, limit = -1, threshold - STEP
        while before < len(self.chosen) < self.keep:
            before, limit = len(self.chosen), limit + STEP
            free = self.free.nonzero().squeeze(1)
            for number, tokens in enumerate(free[_rising(self.redundancy(free))].split(batch)):
                if len(self.chosen) >= self.keep or (number == 1 and len(self.chosen) == before):
                    break
                self._add_below(tokens, limit)

    def _add_below(self, tokens: Tensor, limit: float) -> None:
        redundancy = self.redundancy(tokens)
        below, room = redundancy < limit, self.keep - len(self.chosen)
        few = int(below.sum()) <= room
        self._add(tokens[below] if few else tokens[_rising(redundancy)[:room]])

    def fill(self) -> None:
        """Add the least redundant token, one after another, until the budget is met."""
        while len(self.chosen) < self.keep:
            free = self.free.nonzero().squeeze(1)
            self._add(free[self.redundancy(free).argmin(keepdim=True)])


def _rising(values: Tensor) -> Tensor:
    return torch.sort(values, stable=True).indices


def reinjected(states: Tensor, likeness: Tensor, chosen: Tensor, kept: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states of the kept tokens [m, D] with the dropped ones in them, and which of them changed [m].

    Last, the kept token that each of the n tokens went into [n], -1 for none.

    Args:
        states: [n, D]; likeness: [n, n].
        chosen: the kept tokens in the order of choice, which breaks ties; kept: the same, ascending.
    """
    dropped = torch.isin(torch.arange(len(states), device=kept.device), kept, invert=True).nonzero().squeeze(1)
    into = chosen[likeness[dropped][:, chosen].argmax(1)]
    # sums by a product with weights: a scattered sum would depend on the order of threads on a GPU
    weights = (into == kept[:, None]) * likeness[kept][:, dropped]
    total = weights.sum(1, keepdim=True)
    mixed = OWN * states[kept] + (1 - OWN) * (weights @ states[dropped]) / total.clamp(min=1e-8)
    new, members = total[:, 0] > 0, owned(len(states), kept)
    place = torch.searchsorted(kept, into)
    members[dropped] = torch.where(new[place], place, -1)
    return torch.where(new[:, None], mixed, states[kept]), new, members
