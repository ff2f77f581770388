"""What a method's options may be, told by the annotations of its fields, and checked before anything runs."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cache
from inspect import get_annotations
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

from vlmprune.core.errors import UserError

if TYPE_CHECKING:
    from vlmprune.core.method import Method


@dataclass(frozen=True)
class Limit:
    """What the values of an option must be: the mark in `Annotated[float, Share]`.

    Attributes:
        words: what follows "must be" in the error.
        holds: whether a value will do.
        whole: whether it is about whole numbers, where an option may also be another kind of value.
    """

    words: str
    holds: Callable[[Any], bool]
    whole: bool = False

    def check(self, name: str, option: str, value: object) -> None:
        """Raise UserError unless `value` will do as this option of the method `name`."""
        if not self.holds(value):
            raise UserError(f"{name}: {option}={value!r} must be {self.words}.")


def _number(value: object) -> bool:
    """True and False are whole numbers to Python, and here none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


Share = Limit("a number from 0 to 1", lambda value: _number(value) and 0 <= value <= 1)
ShareBelowOne = Limit("a number from 0 to below 1", lambda value: _number(value) and 0 <= value < 1)
Positive = Limit("a number above 0", lambda value: _number(value) and value > 0)
NotNegative = Limit("a number from 0", lambda value: _number(value) and value >= 0)
_BOOL = Limit("True or False", lambda value: isinstance(value, bool))


def AtLeast(least: int) -> Limit:  # named like its siblings, beside which it stands in annotations
    """Whole numbers from `least` on."""
    words = f"a whole number of at least {least}"
    return Limit(words, lambda value: _number(value) and isinstance(value, int) and value >= least, whole=True)


def check_options(method: Method) -> None:
    """Raise UserError, one sentence, for the first option whose value its annotation does not allow."""
    cls: type = type(method)
    for option, (limits, or_none) in _limits(cls).items():
        value = getattr(method, option)
        if value is None and or_none:
            continue
        of_its_kind = [limit for limit in limits if limit.whole == (isinstance(value, int) and len(limits) > 1)]
        (of_its_kind or limits)[-1].check(method.name, option, value)


@cache
def _limits(cls: type[Any]) -> dict[str, tuple[list[Limit], bool]]:
    """By option the limits, one for each kind of value, and whether it may be None.

    An option that a class declares again without a limit keeps that of its base, as `layer: int = 3` does.
    """
    options, found = {field.name for field in fields(cls)}, {}
    for base in reversed(cls.__mro__):
        for option, annotation in _annotations(base, options).items():
            parts = _alternatives(annotation)
            limits = [_limit(part) for part in parts if part is not NoneType]
            known = [limit for limit in limits if limit is not None]
            if known and known == limits:
                found[option] = known, NoneType in parts
    return found


def _annotations(cls: type, options: set[str]) -> dict[str, Any]:
    """What a class itself annotates of these options, with annotations that are text evaluated.

    Raises:
        UserError: an annotation names what only a type checker or a function around the class knows, so that nobody
            could tell what the option may be.
    """
    found = {}
    for option, annotation in _written(cls).items():
        if option not in options:
            continue
        try:
            text = isinstance(annotation, str)
            found[option] = eval(annotation, vars(sys.modules[cls.__module__])) if text else annotation
        except Exception as error:  # whatever the text does
            raise UserError(
                f"{cls.__name__} annotates its option {option!r} with {annotation!r}, which cannot be read at run time "
                f"({error}), so its values would go unchecked: import the names in it at the top of the file, outside "
                "of 'if TYPE_CHECKING:', or define them there."
            ) from error
    return found


def _written(cls: type) -> dict[str, Any]:
    """The annotations of a class as they are written, text or not."""
    try:
        return get_annotations(cls)
    except NameError as error:  # from Python 3.14 on they are evaluated when they are asked for
        raise UserError(
            f"{cls.__name__} annotates an option with a name that is not there at run time ({error}): import it at the "
            "top of the file, outside of 'if TYPE_CHECKING:', or define it there."
        ) from error


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)


def _limit(annotation: Any) -> Limit | None:
    if annotation is bool:
        return _BOOL
    if get_origin(annotation) is Literal:
        allowed = get_args(annotation)
        return Limit(" or ".join(map(repr, allowed)), lambda value: value in allowed)
    if get_origin(annotation) is Annotated:
        return next((mark for mark in annotation.__metadata__ if isinstance(mark, Limit)), None)
    return None
