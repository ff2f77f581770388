"""What a method is like on a model, in words by which people choose one."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, fields
from typing import Any

from vlmprune.core.errors import UserError
from vlmprune.core.method import EVERY_METHODS, Method
from vlmprune.core.needs import EncoderNeed
from vlmprune.core.plan import acts_of
from vlmprune.core.view import ModelInfo

YES, NO = "yes", "no"


@dataclass(frozen=True)
class Traits:
    """What a method is like with its default options.

    Attributes:
        inside: whether it cuts inside the LLM, so that the first decoder layers see more tokens.
        text: whether what it keeps depends on the question.
        attention: whether it reads attention statistics, which are computed beside the model's own attention.
        encoder: whether it reads the vision encoder; what only the projected features tell needs no encoder.
        merges: whether it makes new tokens of several.
        random: whether it draws random numbers.
        budget: whether it takes a budget.
    """

    inside: bool
    text: bool
    attention: bool
    encoder: bool
    merges: bool
    random: bool
    budget: bool

    def words(self) -> dict[str, str]:
        """Each as yes or no."""
        return {field.name: YES if getattr(self, field.name) else NO for field in fields(self)}


def traits_of(method: Method, info: ModelInfo) -> Traits:
    """What a method is like on a model.

    Raises:
        UserError: it cannot act on such a model.
    """
    acts = acts_of(method, 0.5, info)
    needs = [need for act in acts for need in act.needs.values()]
    return Traits(
        inside=any(act.layer is not None for act in acts),
        text=any(need.of_text for need in needs),
        attention=any(
            "attention" in getattr(need, "taps", ()) or "ahead" in getattr(need, "taps", ()) for need in needs
        ),
        encoder=any(isinstance(need, EncoderNeed) for need in needs),
        merges=method.merges,
        random=method.draws,
        budget=method.budgeted,
    )


def wanted_of(texts: list[str]) -> dict[str, str]:
    """Traits that are asked for, written as "text=no"; several may be separated by commas.

    Raises:
        UserError: there is no such trait, or it is neither asked to be yes nor no.
    """
    names, found = [field.name for field in fields(Traits)], {}
    for text in (part.strip() for whole in texts for part in whole.split(",")):
        name, _, value = text.partition("=")
        if name not in names or value not in (YES, NO):
            raise UserError(f"{text!r} is not a need: write one of {', '.join(names)} with yes or no, as in text=no.")
        found[name] = value
    return found


def options_of(cls: type[Method]) -> dict[str, Any]:
    """A method's own options with their defaults."""
    found = {}
    for field in fields(cls):
        if field.name not in EVERY_METHODS:
            found[field.name] = field.default_factory() if field.default_factory is not MISSING else field.default
    return found
