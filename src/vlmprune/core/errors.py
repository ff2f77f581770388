"""The one exception for a user's mistake."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

_ALONE = object()


@dataclass(frozen=True)
class Option:
    """An option named in an error: shown as `keep=0.222` to callers of Python, as `--keep 0.222` on the command line.

    Attributes:
        name: as Python spells it: `text_tower`.
        value: the value that was given or is suggested; left out to name the option only.
    """

    name: str
    value: object = _ALONE

    def __str__(self) -> str:
        return self.name if self.value is _ALONE else f"{self.name}={self.value!r}"

    @property
    def typed(self) -> str:
        """As the command line spells it; a switch, whose value is True, stands alone."""
        flag = "--" + self.name.replace("_", "-")
        return flag if self.value is _ALONE or self.value is True else f"{flag} {shlex.quote(str(self.value))}"


def sentence_of(error: BaseException) -> str:
    """The first sentence of an error's text, without its stop; "" where it has none."""
    return next(iter(str(error).strip().splitlines()), "").split(". ")[0].rstrip(".")


class UserError(ValueError):
    """Wrong input from the user: one sentence that says what to do. The command line prints it without a traceback.

    Args:
        parts: the sentence, split where it names options: `UserError("Give ", Option("keep", 0.222), ".")`.
    """

    def __init__(self, *parts: str | Option) -> None:
        super().__init__("".join(map(str, parts)))
        self.parts = parts

    @property
    def typed(self) -> str:
        """The sentence for the command line."""
        return "".join(part.typed if isinstance(part, Option) else part for part in self.parts)
