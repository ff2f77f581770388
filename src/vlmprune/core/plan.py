"""What a recipe comes to on one model: its acts, resolved once. Runtime, report, operations and pages read the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from vlmprune.core.act import Act, At
from vlmprune.core.aim import Aim
from vlmprune.core.budget import OWN, ByFrame, Keep, Keeps
from vlmprune.core.errors import UserError
from vlmprune.core.framed import framed
from vlmprune.core.method import Method
from vlmprune.core.roles import (
    Fusing,
    MergesInside,
    NamesParts,
    Observes,
    OrdersParts,
    SelectsTogether,
    changes_encoding,
)
from vlmprune.core.view import ModelInfo


@dataclass(frozen=True)
class Plan:
    """The acts of a recipe on one model, in order."""

    info: ModelInfo
    acts: tuple[Act, ...]

    @cached_property
    def before_llm(self) -> tuple[Act, ...]:
        return tuple(act for act in self.acts if act.layer is None)

    @cached_property
    def inside(self) -> dict[int, Act]:
        """The acts inside the LLM, by the decoder layer before which they take place."""
        return {act.layer: act for act in self.acts if act.layer is not None}

    def policies(self, forced: str | None = None) -> dict[int, str]:
        """How tokens are numbered behind the acts of each layer, 0 for those before the LLM: "original" or "compact".

        Where one of several at one place numbers anew, all are.

        Args:
            forced: the user's choice, which goes before the methods' own.
        """
        found: dict[int, str] = {}
        for act in self.acts:
            layer, policy = act.layer or 0, forced or act.positions
            found[layer] = "compact" if "compact" in (policy, found.get(layer)) else policy
        return found


def acts_of(
    method: Method, keep: Keep | ByFrame | Keeps, info: ModelInfo, stage: int = 0, budget: str = OWN
) -> tuple[Act, ...]:
    """The acts of one stage of a recipe.

    Args:
        budget: what `keep` counts, one of `core.budget.BUDGETS`.

    Raises:
        UserError: the method cannot act on this model, or cannot meet the budget.
    """
    if isinstance(keep, Keeps):
        return _by_image(method, keep, info, stage, budget)
    if isinstance(keep, ByFrame):
        return (framed(method, keep, lambda own: _acts(method, own, info, stage), budget),)
    if budget != OWN:
        return Aim(budget, keep).acts(lambda own: _acts(method, own, info, stage))
    return _acts(method, keep, info, stage)


def _acts(method: Method, keep: Keep, info: ModelInfo, stage: int) -> tuple[Act, ...]:
    _check_roles(method)
    places = [place if isinstance(place, At) else At(place) for place in method.acts(info, keep)]
    layers, needs, positions = tuple(place.layer for place in places), method.needs(info), method.positions(info)
    fusion = method.fusion(info) if isinstance(method, Fusing) else None
    pool, every_slot = method.pool(info), method.sees_every_slot(info)
    keeps_blanks = _keeps_blanks(method)
    return tuple(
        Act(
            method, info, keep, place.layer, number, layers, needs if place.needs is None else place.needs,
            positions, fusion if place.fuses else None, stage,
            method.per or place.pool or pool,
            method.blanks != "drop" and (every_slot if place.sees_every_slot is None else place.sees_every_slot),
            keeps_blanks,
        )
        for number, place in enumerate(places)
    )  # fmt: skip


def _keeps_blanks(method: Method) -> bool:
    """Whether slots without a patch stay outside of the budget; UserError where the method cannot have it."""
    if method.blanks != "keep":
        return False
    looks = isinstance(method, Fusing | Observes)
    if method.merges or changes_encoding(method) or looks or not (method.budgeted or method.exact):
        raise UserError(
            f"{method.name} cannot have blanks='keep', because it makes new tokens, looks at all of them or counts "
            "them itself: leave it out, or choose a method that drops tokens, such as divprune."
        )
    return True


def _check_roles(method: Method) -> None:
    """Raise TypeError where a method has the functions of a role without its base, so that nobody would call them."""
    name = type(method).__name__
    for role in (Fusing, MergesInside, OrdersParts, SelectsTogether, Observes):
        missing = [function for function in role.__abstractmethods__ if hasattr(method, function)]
        if missing and not isinstance(method, role):
            raise TypeError(f"{name} has {missing[0]}, so it must be a {role.__name__}, too")
    if not isinstance(method, SelectsTogether):
        return
    if isinstance(method, NamesParts):
        raise TypeError(f"{name} cannot be both a NamesParts and a SelectsTogether")
    newest = next(cls for cls in type(method).__mro__ if {"select", "select_together"} & vars(cls).keys())
    if "select_together" not in vars(newest):
        raise TypeError(f"{newest.__name__} has a select of its own, so it needs a select_together of its own, too")


def _by_image(method: Method, keep: Keeps, info: ModelInfo, stage: int, budget: str) -> tuple[Act, ...]:
    by_budget = [acts_of(method, each, info, stage, budget) for each in keep.different]
    # All images go through the decoder together, so that what happens where cannot be a matter of one image.
    places = [[(act.layer, act.needs) for act in acts] for acts in by_budget]
    if any(place != places[0] for place in places):
        raise UserError(
            f"{method.name} acts at other layers under another budget: give all images the same one instead of "
            f"keep={keep}."
        )
    return tuple(replace(acts[0], keeps=keep, variants=acts) for acts in zip(*by_budget, strict=True))


def plan(stages: Sequence[tuple[Method, Keep | ByFrame | Keeps, str]], info: ModelInfo) -> Plan:
    """The acts of methods, their budgets and what these count, in the order in which they are written."""
    acts = (
        act
        for number, (method, keep, budget) in enumerate(stages)
        for act in acts_of(method, keep, info, number, budget)
    )
    return Plan(info, tuple(acts))
