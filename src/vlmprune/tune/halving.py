"""Successive halving: all candidates on a little, the better half on more, and the last ones on everything.

Karnin, Koren and Somekh, "Almost optimal exploration in multi-armed bandits" (ICML 2013), and Jamieson and Talwalkar,
"Non-stochastic best arm identification and hyperparameter optimization" (AISTATS 2016). A candidate that is dropped was
worse on what was asked until then: a round on few questions may drop a candidate that more questions would have kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from vlmprune.tune.target import Figures, Target

FINALISTS = 3  # that are measured on everything
TURNS = 12  # timings of a finalist
LEAST_BATCHES, LEAST_TURNS = 2, 3  # in the first round, where there are so many


@dataclass(frozen=True)
class Round:
    """A step of the search.

    Attributes:
        candidates: how many are in it.
        batches: of questions that each of them has been asked at its end.
        turns: timings that each of them has at its end.
    """

    candidates: int
    batches: int
    turns: int


@dataclass(frozen=True)
class Standing:
    """What became of a candidate.

    Attributes:
        name: of the candidate.
        round: the last in which it was, from 1.
        figures: at the end of that round.
    """

    name: str
    round: int
    figures: Figures


Measure = Callable[[Sequence[str], Round], Mapping[str, Figures]]


def rounds_of(candidates: int, batches: int, turns: int = TURNS, finalists: int = FINALISTS) -> list[Round]:
    """The rounds for so many candidates: each has half of the candidates, and twice the work, of the one before.

    Args:
        candidates: at least one.
        batches: of questions there are, at least one; the last round asks all.
    """
    sizes = [candidates]
    while sizes[-1] > finalists:
        sizes.append(max(finalists, -(-sizes[-1] // 2)))
    last = len(sizes) - 1
    least = min(LEAST_BATCHES, batches), min(LEAST_TURNS, turns)
    work = ((max(least[0], batches >> last - k), max(least[1], turns >> last - k)) for k in range(len(sizes)))
    return [Round(size, *done) for size, done in zip(sizes, work, strict=True)]


def halve(names: Sequence[str], rounds: Sequence[Round], measure: Measure, target: Target) -> list[Standing]:
    """Run the rounds.

    Args:
        measure: the figures of the candidates that are named, at the end of a round.

    Returns:
        All candidates, the best of the last round first; below them those dropped, the last dropped first.
    """
    left, standings = list(names), list[Standing]()
    for number, step in enumerate(rounds, 1):
        found = measure(left, step)
        left.sort(key=lambda name: target.rank(found[name]))
        stays = rounds[number].candidates if number < len(rounds) else 0
        standings = [Standing(name, number, found[name]) for name in left[stays:]] + standings
        del left[stays:]
    return standings
