"""What a scorer takes and what it gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple


class Verdict(NamedTuple):
    """The answer found in a reply (None when there is none of the asked kind), and its score from 0.0 to 1.0.

    A score of NaN is not known yet: a judge has to give it.
    """

    extracted: str | None
    score: float


@dataclass(frozen=True)
class Expected:
    """What a reply is compared with.

    Attributes:
        answers: the right answers.
        options: texts of the options in order, for kinds that choose among them.
        facts: what else the kind reads, by name.
    """

    answers: tuple[str, ...]
    options: tuple[str, ...] = ()
    facts: Mapping[str, str] = field(default_factory=dict)


Scorer = Callable[[str, Expected], Verdict]

UNPARSED = Verdict(None, 0.0)
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
