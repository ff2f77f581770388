"""What a search found, for people: a table, what it says, and how to use it."""

from __future__ import annotations

import shlex

from vlmprune.bench.stats import share_interval
from vlmprune.bench.store import VANILLA
from vlmprune.tune.agreement import ANSWERS
from vlmprune.tune.search import Found
from vlmprune.tune.target import Figures, milliseconds

HEAD = ("", "kept", "loyalty", "time", "fastest to slowest", "questions", "turns")


def table(found: Found) -> list[str]:
    """The unpruned model and each candidate, the best first, as aligned lines."""
    rows = [(VANILLA, found.unpruned), *((found.recipes[one.name], one.figures) for one in found.standings)]
    cells = [HEAD, *(_cells(name, figures, found.compared == ANSWERS) for name, figures in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(HEAD))]
    return [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:]))]).rstrip()
        for row in cells
    ]


def _cells(name: str, figures: Figures, share: bool) -> tuple[str, ...]:
    loyalty = f"{figures.loyalty:.3f}"
    if share and name != VANILLA:
        interval = share_interval(round(figures.loyalty * figures.questions), figures.questions)
        loyalty += f" [{interval.low / 100:.2f}, {interval.high / 100:.2f}]"
    spread = f"{milliseconds(figures.fastest)} to {milliseconds(figures.slowest)}"
    counts = str(figures.questions), str(figures.turns)
    return (name, f"{figures.kept:.1f}", loyalty, milliseconds(figures.seconds), spread, *counts)


def meaning(found: Found) -> str:
    """What the columns mean."""
    counted = "share of answers equal to the unpruned model's" if found.compared == ANSWERS else "words in common"
    more = ", with its 95 % interval" if found.compared == ANSWERS else " with the unpruned model's answer"
    until = "the first new token" if found.timed_tokens == 1 else f"new token {found.timed_tokens}"
    return (
        f"kept: visual tokens left at the end. loyalty: {counted}{more}. time: median from one question to {until}, "
        f"on {found.made['device']}. Candidates with fewer questions were dropped in an earlier round."
    )


def verdict(found: Found) -> str:
    """Whether the target is met, and by what."""
    best, name = found.best.figures, found.recipes[found.best.name]
    figures = (
        f"{milliseconds(best.seconds)} (unpruned {milliseconds(found.unpruned.seconds)}), loyalty {best.loyalty:.3f}"
    )
    over = f"over {best.questions} questions"
    if not found.met:
        return f"No candidate meets the target, {found.target}. The nearest is {name}: {figures} {over}."
    enough = found.target.latency is not None and found.target.met(found.unpruned)
    already = " The unpruned model meets the target, too." if enough else ""
    return f"{name} meets the target, {found.target}: {figures} {over}.{already}"


def usage(found: Found) -> list[str]:
    """How the best candidate is used, on the command line and in Python."""
    name = found.recipes[found.best.name]
    words = ["vlmprune", "run", "PICTURE", "-q", "QUESTION", "--model", found.model, "--method", name]
    return [shlex.join(words), f"with vlmprune.prune(model, {name!r}): ..."]
