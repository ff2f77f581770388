"""What an engine is asked to do, on its way to every process of vLLM: one entry of `hf_overrides`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from vlmprune.core.budget import ByAge
from vlmprune.core.errors import UserError
from vlmprune.core.method import POSITIONS
from vlmprune.core.recipe import recipe
from vlmprune.serve.comparison import check_share
from vlmprune.serve.vllm import ARCHITECTURE
from vlmprune.serve.wanted import check_keeps_all, check_request_keep, under

if TYPE_CHECKING:
    from vlmprune.core.budget import Budget, Keep
    from vlmprune.core.method import Method
    from vlmprune.core.recipe import Recipe

ENTRY = "vlmprune"
PROCESSOR = "mm_processor_kwargs"  # of a request, in which its budget travels


@dataclass(frozen=True)
class Asked:
    """How an engine prunes.

    Attributes:
        recipe: written out.
        seed: for methods that draw.
        positions: "original" or "compact" where the user chose; None for what the methods' authors do, as far as the
            engine can (see `docs/serving.md`).
        request_keep, request_query: whether a request to a server may set the budget, and what methods that read the
            question compare its images with.
        canary: the share of the requests that a server also asks of the unpruned model.
        text_tower: the CLIP model, folder or hub id, by which they compare.
        reads: whether a method reads the question on this model, which a server then takes from each conversation.
    """

    recipe: str
    seed: int = 0
    positions: str | None = None
    request_keep: bool = False
    canary: float = 0.0
    request_query: bool = False
    text_tower: str | None = None
    reads: bool = False

    @property
    def takes_keeps(self) -> bool:
        """Whether the engine runs prompts under budgets of their own, those of the canary among them."""
        return self.request_keep or self.canary > 0

    @property
    def tells(self) -> bool:
        """Whether a server has something to tell the engine of each request."""
        return self.takes_keeps or self.reads or self.ages is not None

    @property
    def ages(self) -> ByAge | None:
        """The budget by the age of an image in its conversation, where the recipe is one method with such a budget."""
        stages = recipe(self.recipe).stages
        budget = stages[0].keep if len(stages) == 1 else None
        return budget if isinstance(budget, ByAge) else None

    def under(self, keep: Keep | None) -> Asked:
        """The same with the budget of an image, if that has one of its own; by age with that of the latest."""
        if keep is None and self.ages is not None:
            keep = self.ages.latest
        return self if keep is None else replace(self, recipe=str(under(recipe(self.recipe), keep)))

    @property
    def overrides(self) -> dict[str, Any]:
        """As `overrides` gives it to an engine."""
        return {"architectures": [ARCHITECTURE], ENTRY: asdict(self)}

    def __str__(self) -> str:
        """Tells what is cached under this pruning from what is cached under another one."""
        return f"{ENTRY}:{self.recipe}:{self.seed}:{self.positions}:{self.text_tower}"


def overrides(
    method: str | Method | Recipe,
    keep: Budget | None = None,
    *,
    positions: str | None = None,
    seed: int = 0,
    request_keep: bool = False,
    canary: float = 0.0,
    text_tower: str | None = None,
    **options: Any,
) -> dict[str, Any]:
    """The `hf_overrides` of a vLLM engine that prunes: `LLM(model, hf_overrides=overrides("divprune", keep=0.25))`.

    Args:
        method, keep, positions, seed, options: as `vlmprune.prune` takes them.
        request_keep: let a prompt set its own budget, by `mm_processor_kwargs={"vlmprune_keep": "0.5"}`.
        canary: for `vlmprune serve`, the share of the requests that are also run unpruned.
        text_tower: for methods that compare images with a question, the CLIP model (folder or hub id) whose vision
            tower the model has. Each prompt with images gives the question, by
            `mm_processor_kwargs={"vlmprune_query": "..."}`.

    Raises:
        UserError: as `vlmprune.prune`. Whether the model can be pruned so is checked when vLLM loads it.
    """
    chosen = recipe(method, keep, **options)
    if request_keep:
        check_request_keep(chosen)
    check_share(canary)
    if canary:
        check_keeps_all(chosen)
    written = str(chosen)
    recipe(written)  # the other processes have only the words
    if positions is not None and positions not in POSITIONS:
        raise UserError(f"positions={positions!r}: choose from {' and '.join(POSITIONS)}.")
    return Asked(written, seed, positions, request_keep, canary, text_tower=text_tower).overrides


def asked_of(model_config: Any) -> Asked:
    """What vLLM's model config carries. Only the user's overrides count: a checkpoint cannot ask for a method.

    Raises:
        UserError: they do not say how to prune.
    """
    return asked_in(model_config.hf_overrides)


def asked_in(given: object) -> Asked:
    """What `overrides` has written; UserError where it has not."""
    entry = given.get(ENTRY) if isinstance(given, Mapping) else None
    try:
        return Asked(**entry)  # type: ignore[arg-type]
    except TypeError:
        raise UserError(
            f"The architecture {ARCHITECTURE} needs to know how to prune: give vLLM the hf_overrides that "
            "vlmprune.serve.overrides(...) returns."
        ) from None
