"""Budgets that mean the same for every method: the method's own budget is solved for, image size by image size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from vlmprune.core.act import Act
from vlmprune.core.budget import BUDGET_WORDS, MEAN, Keep, resolve_keep, written_budget
from vlmprune.core.errors import UserError

TYPICAL = 576  # tokens of an image, LLaVA-1.5's: a share that cannot be met there is refused before a model runs
WITHIN = 1.0  # tokens by which counts may miss a budget, as each act keeps a whole number of them
_STEPS = 50  # of the bisection; the shares that it ends between are told apart by no count

Make = Callable[[Keep], Sequence[Act]]  # a method's acts under a budget of its own


class OutOfReach(UserError):
    """A method cannot meet a budget of this meaning."""


@dataclass(frozen=True)
class Aim:
    """What a budget asks of a method.

    Attributes:
        kind: "mean" or "final" (see `core.budget.BUDGETS`).
        keep: the user's budget.
    """

    kind: str
    keep: Keep
    _solved: dict[int, Keep] = field(default_factory=dict, compare=False, repr=False)

    def tokens(self, total: int) -> float:
        """The visual tokens that it asks for, of an image's `total`."""
        share = isinstance(self.keep, float)
        return self.keep * total if share and self.kind == MEAN else float(resolve_keep(self.keep, total))

    def acts(self, make: Make) -> tuple[Act, ...]:
        """The acts of a method that is to meet it.

        Raises:
            OutOfReach: it cannot, or only an image can tell whether it would.
        """
        # Where acts take place may depend on a share, but on no image: all images go through the decoder together.
        typical = self._solve(make, TYPICAL) if isinstance(self.keep, float) else self.keep
        acts = tuple(make(typical))
        if acts and self.keep != 1.0 and planned(acts, TYPICAL) is None:
            raise self._untold(acts[0])
        if all(act.layer is None for act in acts):
            return tuple(make(self.keep))  # every layer sees what the method leaves, so that all meanings are one
        return tuple(replace(act, aim=self) for act in acts)

    def own_keep(self, act: Act, total: int) -> Keep:
        """The budget of its own with which a method meets it on an image with `total` tokens.

        Args:
            act: any of the method's acts.

        Raises:
            OutOfReach: it cannot.
        """
        if total not in self._solved:
            self._solved[total] = self._solve(partial(_all_acts, act), total)
        return self._solved[total]

    def _solve(self, make: Make, total: int) -> Keep:
        if self.keep == 1.0 and isinstance(self.keep, float):
            return self.keep
        wanted = self.tokens(total)
        low, high = 0.0, 1.0
        for _ in range(_STEPS):
            middle = (low + high) / 2
            found = self._counted(make, middle, total)
            low, high = (middle, high) if found is None or found < wanted else (low, middle)
        # the budget itself comes first: where it is met as it stands, results are those of the method's own meaning
        options: list[tuple[float, Keep]] = []
        for keep in (self.keep, high, *([low] if low else [])):
            found = self._counted(make, keep, total)
            if found is not None:
                options.append((found, keep))
        nearest, own = min(options, key=lambda option: abs(option[0] - wanted))
        if abs(nearest - wanted) > WITHIN:
            raise self._missed(make, total, nearest)
        return own

    def _counted(self, make: Make, keep: Keep, total: int) -> float | None:
        """What the method would leave by this meaning; None where it refuses so small a budget.

        Raises:
            OutOfReach: only an image can tell.
        """
        try:
            acts = make(keep)
            counts = planned(acts, total)
        except OutOfReach:
            raise
        except UserError:
            if keep == 1.0:
                raise  # it refuses this model, whatever the budget
            return None
        if counts is None:
            raise self._untold(acts[0])
        return mean_entering(acts, counts, total) if self.kind == MEAN else float(counts[-1] if counts else total)

    def _missed(self, make: Make, total: int, nearest: float) -> OutOfReach:
        least = min(found for k in range(1, 61) if (found := self._counted(make, 0.5**k, total)) is not None)
        return OutOfReach(
            f"{_name(make)} cannot meet a budget of {written_budget(self.keep, self.kind)}, {self.tokens(total):.4g} "
            f"of {total} visual tokens ({BUDGET_WORDS[self.kind]}): on this model it reaches {least / total:.4g} to 1, "
            f"and the nearest is {nearest / total:.4g}. Give another budget, or leave the method out."
        )

    def _untold(self, act: Act) -> OutOfReach:
        return OutOfReach(
            f"{act.method.name} cannot be held to a budget of {written_budget(self.keep, self.kind)}, because the "
            "image or the authors' code decides how many tokens stay: give its own budget (own), or leave it out."
        )


def planned(acts: Sequence[Act], total: int) -> list[int] | None:
    """Tokens left after each act, of an image with `total`; None where only the image can tell."""
    counts: list[int] = []
    for act in acts:
        left = act.method.left(act, counts[-1] if counts else total, total)
        if left is None:
            return None
        counts.append(left)
    return counts


def mean_entering(acts: Sequence[Act], counts: Sequence[int], total: int) -> float:
    """Visual tokens that enter a decoder layer, mean over the layers, where `counts` are left after each act."""
    if not acts:
        return float(total)
    depth = acts[0].info.decoder_layers
    starts = [0, *(act.layer or 0 for act in acts), depth]
    present = [total, *counts]
    return sum(n * (starts[k + 1] - starts[k]) for k, n in enumerate(present)) / depth


def _all_acts(act: Act, keep: Keep) -> list[Act]:
    """All the acts of an act's method, at the layers that are settled, with another budget of its own."""
    return [replace(act, keep=keep, layer=at, number=number, aim=None) for number, at in enumerate(act.layers)]


def _name(make: Make) -> str:
    """The method, with the layer of its first cut, before which every layer sees every token."""
    first = next(act for keep in (0.5, 0.01) for act in make(keep))
    return f"{first.method.name}, which first cuts before decoder layer {first.layer} of {first.info.decoder_layers},"
