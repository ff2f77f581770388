"""What became of each slot of an image: kept, merged into another token, or dropped; act by act."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

DROPPED = -1  # the token is gone
PLACELESS = -2  # it was merged into a token that stands at no slot
UNTOLD = -3  # it was dropped or merged: the method does not say which


@dataclass(frozen=True)
class Step:
    """What one act did to an image's tokens.

    Attributes:
        before: [n] slots of the tokens that reached it, -1 for a token without one.
        after: [m] slots of the tokens that it left.
        chosen: [m] which of the n tokens each one is, or has as its anchor; -1 for none.
        merges: whether it made new tokens.
        members: [n] as `core.view.Merged.members`, where it made new tokens and says so.
        parts: slots of the kept tokens by the name of their kind (`core.roles.NamesParts`).
        ratings: [n] how important the method found each of the n tokens, where it says so (`ImageView.rated`).
    """

    before: Tensor
    after: Tensor
    chosen: Tensor
    merges: bool = False
    members: Tensor | None = None
    parts: Mapping[str, Tensor] = field(default_factory=dict)
    ratings: Tensor | None = None

    def where(self) -> Tensor:
        """[n] the slot of the token that each of the n tokens is or is merged into, or one of the values above."""
        after, chosen = self.after.cpu(), self.chosen.cpu()
        after = torch.where(after >= 0, after, PLACELESS)
        if self.members is not None:
            members = self.members.cpu()
            return torch.where(members >= 0, after[members.clamp(min=0)], DROPPED)
        found = torch.full((len(self.before),), UNTOLD if self.merges else DROPPED)
        found[chosen[chosen >= 0]] = after[chosen >= 0]
        return found


@dataclass
class Fate:
    """What became of the slots of one image.

    Attributes:
        start: [count] the slot of the token that each slot's patch is part of before any act, or `DROPPED`.
        steps: of each act in order; None for one that left everything as it was.
    """

    start: Tensor
    steps: list[Step | None] = field(default_factory=list)

    def joined(self, upto: int) -> Tensor:
        """[count] the slot of the token that each slot's patch is part of after the first `upto` acts.

        A slot whose token was kept has its own number. Other values are `DROPPED`, `PLACELESS` and `UNTOLD`.
        """
        found = self.start.cpu().clone()
        for step in self.steps[:upto]:
            if step is None:
                continue
            before, now = step.before.cpu(), step.where()
            goes = torch.full((len(found) + 1,), DROPPED)  # the last entry: of tokens without a slot
            order = torch.arange(len(before)).flip(0)  # of two tokens at one slot the first counts
            goes[torch.where(before >= 0, before, len(found))[order]] = now[order]
            at = torch.where(found == PLACELESS, len(found), found)
            found = torch.where(at >= 0, goes[at.clamp(min=0)], found)
        return found

    def parts(self, upto: int) -> dict[str, Tensor]:
        """The kinds of kept tokens that methods named in the first `upto` acts: sorted slots of those still there."""
        left = self.joined(upto)
        own = left == torch.arange(len(left))
        found: dict[str, Tensor] = {}
        for step in self.steps[:upto]:
            for name, slots in (step.parts if step is not None else {}).items():
                slots = slots.cpu()
                slots = slots[slots >= 0]
                found[name] = slots[own[slots]].sort().values
        return found

    def ratings(self, upto: int) -> Tensor:
        """[count] how important the last of the first `upto` acts that says so found the token at each slot.

        Not a number where no act says so: tokens that were gone by then, or a method that rates none.
        """
        found = torch.full(self.start.shape, torch.nan)
        for step in self.steps[:upto]:
            if step is not None and step.ratings is not None:
                slots = step.before.cpu()
                found[slots[slots >= 0]] = step.ratings.float().cpu()[slots >= 0]
        return found
