"""What a search chooses from: methods at budgets, without those that the model refuses."""

from __future__ import annotations

from collections.abc import Sequence

from vlmprune.bench.load import Loaded
from vlmprune.bench.plan import Variant, variants_of
from vlmprune.bench.store import VANILLA
from vlmprune.core.budget import Keep
from vlmprune.core.errors import Option, UserError
from vlmprune.core.recipe import lacks_budget

# Of each kind one or two that are strong where they were compared, and `random`, which any other should be better than:
# attention, diversity, merging, cuts inside the language model.
METHODS = ("random", "divprune", "hiprune", "visionzip", "vispruner", "scope", "pool", "fastv", "dart")
KEEPS: tuple[Keep, ...] = (0.5, 0.333, 0.222, 0.111)
UNPRUNED = Variant(VANILLA, 1.0, VANILLA)


def asked_for(methods: Sequence[str], keeps: Sequence[Keep], seed: int = 0) -> list[Variant]:
    """Each method at each budget; a recipe that carries its own budget is there once. `seed` is of those that draw.

    Raises:
        UserError: a method or budget is not one.
    """
    if not keeps and any(map(lacks_budget, methods)):
        raise UserError("A method without a budget of its own needs one: give ", Option("keep", 0.222), ".")
    every = dict.fromkeys(variant for text in methods for variant in variants_of(text, keeps))
    return [one for variant in every for one in variant.seeded((seed,))]


def fitting(variants: Sequence[Variant], loaded: Loaded) -> tuple[list[Variant], dict[str, str]]:
    """The variants that the model takes, and why it refuses the others, by method.

    Raises:
        UserError: it takes none.
    """
    taken, refused = [], dict[str, str]()
    for variant in variants:
        try:
            if variant.recipe is not None:
                loaded.session(variant.recipe)  # a session that is not opened changes nothing
        except UserError as error:
            refused.setdefault(variant.method, str(error).rstrip("."))
        else:
            taken.append(variant)
    if not taken:
        text, why = next(iter(refused.items()))
        raise UserError(f"Nothing of what was asked can run on {loaded.name}. {text}: {why}.")
    return taken, refused
