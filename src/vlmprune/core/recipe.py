"""Recipes: stages in the order in which they act, written `divprune:0.333 > fastv@2:0.333`.

Grammar of a stage: `name` or `FILE.py:Class` (`core.files`), then `(option=value, ...)`, `@layer` and `:keep`, each
optional. A share is of the tokens that reach the stage, a whole number is tokens per image, and a list, as in
`divprune:[0.5, 0.1]`, has a budget for each image; `divprune:16/frame` and `divprune:[128, 64, 32]/frame` have one for
each frame of a video, and `divprune:0.5/latest+0.1/older` one for the last image of a prompt and one for those before
it. `pyramiddrop:mean=0.222` and `pyramiddrop:final=64` count the tokens that enter a decoder layer on average, and
those left at the end, instead of what the method's own budget means (`core.aim`). A method that holds another takes it,
with the budget, as the first item in its parentheses: `fuse(divprune:0.1, tau=0.1)@2`.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from itertools import pairwise
from typing import Any

from vlmprune.core.budget import (
    OWN,
    Budget,
    ByFrame,
    Keep,
    Keeps,
    check_budget,
    check_kind,
    read_budget,
    written_budget,
)
from vlmprune.core.errors import Option, UserError
from vlmprune.core.files import IN_FILE, method_in_file, spelled
from vlmprune.core.method import POOLS, Method
from vlmprune.core.plan import Plan, plan
from vlmprune.core.presets import PRESETS, written_out
from vlmprune.core.registry import METHODS, unknown
from vlmprune.core.roles import changes_encoding, merges_inside
from vlmprune.core.view import ModelInfo

_STAGE = re.compile(
    rf"^\s*(?P<name>{IN_FILE.pattern}|[A-Za-z][\w+.-]*)\s*"
    r"(?:\((?P<options>.*)\))?\s*(?:@(?P<layer>[\d\s,]+))?\s*(?::(?P<keep>[^:]*))?$"
)
_OPTION = re.compile(r"^(?P<key>\w+)\s*=\s*(?P<value>.+)$")
_EXAMPLE = 0.222  # the budget that errors suggest


@dataclass(frozen=True)
class Stage:
    """A method and its budget, which is 1.0 if the method takes none.

    Attributes:
        budget: what `keep` counts, one of `core.budget.BUDGETS`.
    """

    method: Method
    keep: Keep | ByFrame | Keeps
    budget: str = OWN

    def __post_init__(self) -> None:
        check_kind(self.budget)
        if self.method.per not in (None, *POOLS):
            raise UserError(f"{self.method.name}: per={self.method.per!r} must be {' or '.join(map(repr, POOLS))}.")

    def __str__(self) -> str:
        return self.named(spelled)

    def named(self, name: Callable[[Method], str]) -> str:
        """The stage as a recipe string; `name` gives the text that stands for a method."""
        return format_method(self.method, self.keep if self.method.budgeted else None, name, self.budget)


@dataclass(frozen=True)
class Recipe:
    """Stages in the order in which they act. `recipe(str(r))` gives the recipe `r` again."""

    stages: tuple[Stage, ...]

    def __str__(self) -> str:
        return " > ".join(str(stage) for stage in self.stages)

    def on(self, info: ModelInfo) -> Plan:
        """Its acts on a model. A method that acts at several layers has several acts.

        Raises:
            UserError: a method cannot act on this model, or not with its budget.
        """
        return plan([(stage.method, stage.keep, stage.budget) for stage in self.stages], info)

    def check(self, info: ModelInfo) -> None:
        """Raise UserError if the stages cannot act on this model in the order in which they are written."""
        for stage in self.stages:
            if merges_inside(stage.method) and isinstance(stage.keep, Keeps) and len(stage.keep.different) > 1:
                raise UserError(
                    f"{format_method(stage.method)} merges inside the encoder, where all pictures must end with the "
                    f"same number of tokens: give all images the same budget instead of keep={stage.keep}."
                )
        if (clash := _clash(self.stages, info)) is not None:
            better = _in_order(self.stages, info)
            advice = "leave one of them out" if better is None else f"write {better!r}"
            raise UserError(f"In {str(self)!r}, {clash}: {advice}.")


BEFORE_ENCODER, BEFORE_LLM = -1, 0  # places of methods that act at no decoder layer


def _places(stage: Stage, info: ModelInfo) -> list[int]:
    """The decoder layers before which a stage acts, or one of the places before the LLM."""
    first = changes_encoding(stage.method)
    layers = (act.layer for act in Recipe((stage,)).on(info).acts)
    return [(BEFORE_ENCODER if first else BEFORE_LLM) if layer is None else layer for layer in layers]


def _clash(stages: Sequence[Stage], info: ModelInfo) -> str | None:
    """Why the stages cannot act in this order, if so. Several may act at one place only before the LLM."""
    acted = [(place, stage) for stage in stages for place in _places(stage, info)]
    for (last, before), (place, stage) in pairwise(acted):
        if place < last:
            return f"{_name(stage)} acts {_where(place)}, earlier than {_name(before)}, which acts {_where(last)}"
        if place == last != BEFORE_LLM:
            return f"{_name(before)} and {_name(stage)} both act {_where(place)}, where only one method can"
    return None


def _in_order(stages: Sequence[Stage], info: ModelInfo) -> str | None:
    """The same methods sorted by place, each at a layer that is taken moved to the next; None if that fails too."""
    ordered: list[Stage] = []
    last = BEFORE_ENCODER
    for stage in sorted(stages, key=lambda stage: min(_places(stage, info), default=BEFORE_LLM)):
        places = _places(stage, info)
        if places and BEFORE_LLM < places[0] <= last and isinstance(getattr(stage.method, "layer", None), int):
            if last + 1 >= info.decoder_layers:
                return None
            behind: Any = {"layer": last + 1}
            stage = replace(stage, method=replace(stage.method, **behind))
            places = _places(stage, info)
        ordered.append(stage)
        last = max([last, *places])
    return None if _clash(ordered, info) else str(Recipe(tuple(ordered)))


def _name(stage: Stage) -> str:
    return format_method(stage.method)


def _where(place: int) -> str:
    if place > BEFORE_LLM:
        return f"before decoder layer {place}"
    return "before the LLM" if place == BEFORE_LLM else "before or inside the vision encoder"


def recipe(
    spec: str | Method | Recipe | Stage, keep: Budget | None = None, *, budget: str | None = None, **options: Any
) -> Recipe:
    """A recipe from a name, a recipe string, a method object, or a recipe.

    Args:
        spec: what to run. A string may be a chain with budgets of its own, or the name of a preset.
        keep: the budget, for a single stage that has none in `spec`; a list has a budget for each image (see `prune`).
        budget: what the budget of a single stage counts, where the recipe does not say: "mean", the tokens that enter a
            decoder layer on average; "final", those left at the end; "own", what the method's authors count.
        options: hyperparameters of the method, for a single stage given by name.

    Raises:
        UserError: the method or an option is unknown, or the budget is out of range, given twice, or missing.
    """
    if isinstance(spec, Recipe | Stage):
        if keep is not None or options or budget is not None:
            raise UserError("The recipe has its own budgets and options: do not give them again.")
        return spec if isinstance(spec, Recipe) else Recipe((spec,))
    if isinstance(spec, Method):
        if options:
            raise UserError(f"Set the options on the {spec.name} object itself, not beside it.")
        return Recipe((Stage(spec, _the_keep(spec, None, keep), _the_kind(spec, OWN, budget)),))
    if not isinstance(spec, str):
        raise UserError(f"{spec!r} is not a method: give a name, a recipe string, a method object or a recipe.")
    if not spec.strip(" >"):
        raise UserError(f"The recipe {spec!r} names no method: write one, as in 'divprune:0.333 > fastv@2:0.333'.")
    parts = written_out(spec).split(">")
    if len(parts) > 1 and options:
        raise UserError(
            "Options beside a chain are ambiguous: write them in the chain, as in 'hiprune(alpha=0.2):0.5 > "
            "fastv@2:0.5'."
        )
    parsed = [_parse_method(part, spec, options) for part in parts]
    if len(parts) > 1:
        _check_budgets_of_chain(spec, keep)
        if budget is not None:
            written = "write it with each of them, as in divprune:0.5 > pyramiddrop:mean=0.444"
            raise UserError("A chain has its own budgets, so ", Option("budget", budget), f" is unclear: {written}.")
    return Recipe(
        tuple(
            Stage(method, _the_keep(method, written, keep, spec.strip()), _the_kind(method, kind, budget))
            for method, written, kind in parsed
        )
    )


def _check_budgets_of_chain(spec: str, keep: Budget | None) -> None:
    """Raise UserError unless each stage of the chain has its own budget, and none is given beside the chain."""
    parts = [part.strip() for part in spec.split(">")]
    lacks = any(map(lacks_budget, parts))
    advised = _EXAMPLE if keep is None else check_budget(keep)
    whole = " > ".join(f"{part}:{advised}" if lacks_budget(part) else part for part in parts)
    if keep is not None:
        instead = f"write {whole!r} instead of " if lacks else "leave out "
        raise UserError("A chain has its own budgets: ", instead, Option("keep", keep), ".")
    if lacks:
        raise UserError(f"Every stage of a chain needs a budget: write {whole!r}.")


def lacks_budget(text: str) -> bool:
    """Whether a recipe string is a single method that still needs a budget."""
    text = written_out(text)
    if ">" in text:
        return False
    method, written, _ = _parse_method(text, text, {})
    return written is None and method.budgeted


def _parse_method(part: str, whole: str, options: dict[str, Any]) -> tuple[Method, Keep | ByFrame | Keeps | None, str]:
    """A method, the budget written with it, if any, and what that counts."""
    match = _STAGE.match(part)
    if match is None:
        grammar = "write name(option=value)@layer:keep, as in fastv@2:0.333"
        signs = "in a path, write , as %2C, ( as %28, ) as %29, [ as %5B, ] as %5D and : as %3A"
        raise UserError(f"{part.strip()!r} in {whole!r} is not a stage: {signs if '.py' in part else grammar}.")
    name = match["name"]
    written, kind = read_budget(match["keep"].strip()) if match["keep"] is not None else (None, OWN)
    items = _items(match["options"] or "", whole)
    settings: dict[str, Any] = {}
    wraps = _class_of(name).wraps
    if wraps and items and not _OPTION.match(items[0]):
        settings[wraps], inside, counted = _parse_method(items.pop(0), whole, {})
        if written is not None and inside is not None:
            raise UserError(f"{name}: the budget is given twice, inside the parentheses and after them: give it once.")
        written, kind = (inside, counted) if written is None else (written, kind)
    settings |= _parse_options(items, whole)
    if match["layer"] is not None:
        numbers = tuple(int(item) for item in match["layer"].split(",") if item.strip())
        settings |= {"layers": numbers} if len(numbers) != 1 else {"layer": numbers[0]}
    for option in sorted(settings.keys() & options):
        raise UserError(f"{name}: {option} is given twice, in the recipe and beside it: give it once.")
    return make_method(name, settings | options), written, kind


def _class_of(name: str) -> type[Method]:
    if IN_FILE.fullmatch(name):
        return method_in_file(name)
    if name not in METHODS:
        raise unknown(name, METHODS, PRESETS)
    return METHODS[name]


def make_method(name: str, options: dict[str, Any]) -> Method:
    """The method `name` with these hyperparameters, or a UserError that names the options it has."""
    cls = _class_of(name)
    known = [f.name for f in fields(cls)]
    if "layer" in options and "layer" not in known and "layers" in known:
        options = {**options, "layers": (options["layer"],)}
        del options["layer"]
    for option in options:
        if option not in known:
            has = f"its options are {', '.join(known)}" if known else "it has none"
            raise UserError(f"{name} has no option {option!r}: {has}.")
    if cls.wraps and isinstance(options.get(cls.wraps), str):
        text = options[cls.wraps]
        inner, written, _ = _parse_method(text, text, {})
        if written is not None:
            raise UserError(f"{name}: write the budget of {text!r} in a recipe, {name}({text}), or beside it.")
        options = {**options, cls.wraps: inner}
    return cls(**options)


def _the_keep(
    method: Method, written: Keep | ByFrame | Keeps | None, given: Budget | None, text: str | None = None
) -> Keep | ByFrame | Keeps:
    """The budget, which was written in the recipe or given beside it.

    Args:
        text: the recipe as the user wrote it; None if a method object was given.
    """
    name = method.name
    if not method.budgeted:
        if written is not None or given is not None:
            raise UserError(
                f"{format_method(method)} takes no budget, because its options decide what is kept: leave it out."
            )
        return 1.0
    if written is not None and given is not None:
        beside = Option("keep", given)
        raise UserError(f"{name}: the budget is given twice, in the recipe ({written}) and as ", beside, ": give one.")
    if written is None and given is None:
        in_recipe = "" if text is None else f", or write it in the recipe as {text}:{_EXAMPLE}"
        means = method.budget_means and f", {method.budget_means}"
        needs = f"{text or format_method(method)} needs a budget{means}: give "
        raise UserError(needs, Option("keep", _EXAMPLE), f"{in_recipe}.")
    return check_budget(given) if written is None else written


def _the_kind(method: Method, written: str, given: str | None) -> str:
    """What the budget counts, which was written in the recipe or given beside it."""
    if given is None:
        return written
    if not method.budgeted and given != OWN:
        raise UserError(f"{format_method(method)} takes no budget: leave out ", Option("budget", given), ".")
    if written != OWN:
        beside = Option("budget", given)
        raise UserError(f"{method.name}: what the budget counts is given twice, as {written}= and as ", beside, ".")
    return check_kind(given)


def _items(text: str, whole: str) -> list[str]:
    """The items between commas, without splitting at commas inside brackets."""
    items, depth = [""], 0
    for sign in text:
        depth += (sign in "([") - (sign in ")]")
        if depth < 0:
            break
        if sign == "," and depth == 0:
            items.append("")
        else:
            items[-1] += sign
    if depth != 0:
        raise UserError(f"The brackets in {whole!r} do not match: close each one that is opened.")
    return [item.strip() for item in items if item.strip()]


def _parse_options(items: list[str], whole: str) -> dict[str, Any]:
    options = {}
    for item in items:
        match = _OPTION.match(item)
        if match is None:
            raise UserError(f"{item!r} in {whole!r} is not an option: write option=value.")
        try:
            options[match["key"]] = ast.literal_eval(match["value"])
        except (ValueError, SyntaxError):
            options[match["key"]] = match["value"]
    return options


def format_method(
    method: Method, keep: Keep | ByFrame | Keeps | None = None, name: Callable[[Method], str] = spelled, kind: str = OWN
) -> str:
    """`name(option=value)@layer:keep` with the options that differ from the defaults; the inverse of parsing.

    Args:
        name: gives the text that stands for a method.
        kind: what `keep` counts.
    """
    budget = "" if keep is None else f":{written_budget(keep, kind)}"
    shown, place = [], ""
    if method.wraps:
        shown.append(format_method(getattr(method, method.wraps), keep, name, kind))
        budget = ""
    for field in fields(method):
        value = getattr(method, field.name)
        default = field.default if field.default is not MISSING else None
        if field.name in ("layer", "layers"):
            if value is not None:
                place = "@" + (str(value) if isinstance(value, int) else ",".join(map(str, value)))
        elif value != default and field.name != method.wraps:
            shown.append(f"{field.name}={value}")
    return name(method) + (f"({', '.join(shown)})" if shown else "") + place + budget
