"""What is asked for, what is measured of a candidate, and which of two candidates is the better one."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from vlmprune.core.errors import Option, UserError

_TIME = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s)")


@dataclass(frozen=True)
class Figures:
    """What was measured of a candidate.

    Attributes:
        loyalty: mean agreement with the unpruned answers, 0.0 to 1.0 (`tune.agreement`).
        questions: over which that mean is.
        seconds: median time to the last token that is timed.
        fastest, slowest: the range of these times.
        turns: how many were taken.
        kept: visual tokens of a picture after the last cut, mean over the questions.
    """

    loyalty: float
    questions: int
    seconds: float
    fastest: float
    slowest: float
    turns: int
    kept: float


@dataclass(frozen=True)
class Target:
    """One of two wishes: answers within a time, as loyal as can be; or loyal answers, as fast as can be.

    Attributes:
        latency: seconds at most; None for the other wish.
        loyalty: share at least; None for the other wish.
    """

    latency: float | None = None
    loyalty: float | None = None

    def __post_init__(self) -> None:
        if (self.latency is None) == (self.loyalty is None):
            ways = Option("latency", "300ms"), " or ", Option("loyalty", 0.98)
            raise UserError("Give one target, and not both: ", *ways, ".")
        if self.loyalty is not None and not 0 < self.loyalty <= 1:
            raise UserError(Option("loyalty", self.loyalty), " must be a share above 0 and at most 1, as 0.98.")

    def met(self, found: Figures) -> bool:
        if self.latency is not None:
            return found.seconds <= self.latency
        return self.loyalty is not None and found.loyalty >= self.loyalty

    def rank(self, found: Figures) -> tuple[bool, float, float]:
        """A key that sorts the best first: those that meet the target by the other figure, the rest by how near."""
        slow, disloyal = found.seconds, -found.loyalty
        by_time = (slow, disloyal)
        by_loyalty = (disloyal, slow)
        met = self.met(found)
        return (not met, *(by_loyalty if met == (self.latency is not None) else by_time))

    def __str__(self) -> str:
        return f"at most {milliseconds(self.latency)}" if self.latency is not None else f"a loyalty of {self.loyalty:g}"


def parse_latency(text: str) -> float:
    """Seconds of a time such as "300ms" or "0.3s".

    Raises:
        UserError: it is not one.
    """
    found = _TIME.fullmatch(text.strip())
    seconds = float(found[1]) / (1000 if found[2] == "ms" else 1) if found else 0.0
    if not found or not 0 < seconds < math.inf:
        raise UserError(Option("latency", text), " is not a time: write it with its unit, as 300ms or 0.3s.")
    return seconds


def milliseconds(seconds: float) -> str:
    """A time for people: three digits that matter."""
    shown = 1000 * seconds
    return f"{shown:.0f} ms" if shown >= 100 else f"{shown:.1f} ms"
