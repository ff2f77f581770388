"""The recipe that a server is started with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vlmprune.core.budget import by_age, check_budget
from vlmprune.core.errors import Option, UserError
from vlmprune.core.recipe import Recipe, recipe

if TYPE_CHECKING:
    from vlmprune.core.budget import Budget, Keep


def serving_recipe(
    method: str | None, keep: Budget | None = None, latest: Keep | None = None, older: Keep | None = None
) -> Recipe:
    """The recipe that a server is started with.

    Args:
        method: as `vlmprune.prune` takes it.
        keep: one budget for every image.
        latest, older: instead of it, one for the images of the last message that has any, and one for all before.

    Raises:
        UserError: the method is missing or unknown, or the budgets contradict each other.
    """
    if method is None:
        raise UserError("Say how to prune: give ", Option("method", "divprune"), " and ", Option("keep", 0.25), ".")
    if (latest is None) != (older is None):
        both = Option("keep_latest", 0.5), " and ", Option("keep_older", 0.1)
        raise UserError("A budget by age needs both ", *both, ".")
    if latest is None or older is None:
        return recipe(method, None if keep is None else check_budget(keep))
    if keep is not None:
        raise UserError(Option("keep", keep), " and a budget by age contradict each other: give one of them.")
    return recipe(method, by_age(latest, older))
