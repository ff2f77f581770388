"""The agreement with published tables in words: one table for the documents and the page, one file of its pairs."""

from __future__ import annotations

from collections.abc import Sequence

from vlmprune.assets import embedded_names
from vlmprune.bench.stats import Estimate
from vlmprune.bench.table import Table
from vlmprune.bench.tabled import printed_kinds
from vlmprune.published.averages import averages
from vlmprune.report.agreement import FEWEST, SCOPES, Agreement, is_compared, uncompared
from vlmprune.report.comma_separated import figure, lines_of
from vlmprune.report.means import NEAR
from vlmprune.report.tables import MISSING, number

HEAD = (
    *("printed table", "runs compared", "methods", "rank correlation", "by budget (methods)"),
    "mean absolute difference, points",
)
READING = (
    "How far the order of the methods agrees with the one printed for LLaVA-1.5-7B. The correlation is Spearman's, of "
    "the measured rel_mean with the printed average as a share of the unpruned model's: of each budget at which at "
    f"least {FEWEST} methods are in both, and the mean over these budgets. The difference is that of the same two "
    "figures. The 95 % intervals come from weighting the questions of every task at random, the same way for all "
    "methods; printed values, tasks and methods are fixed."
)
TASKS = (
    "The means here are over {tasks}: the printed tables ask nothing like the other tasks (boxes, screenshots, several "
    "pictures)."
)
PREPARED = (
    "This model met missing tokens in training: random ones, tokens that look alike, rectangles and blobs, and in 30 % "
    "of the cuts the tokens that show a thing first. The last resembles what attention to salient objects keeps "
    "(docs/embedded.md has the figures of a model without it)."
)
SCOPE_WORDS = dict(
    zip(
        SCOPES,
        (
            f"a method's run whose mean tokens per layer are nearest to the printed budget, and within "
            f"{100 * NEAR:.0f} % of it; printed budgets are read as such means",
            "the run with the printed budget, where a budget means what the method's authors mean by it: methods "
            "inside the language model may see far more tokens than others",
            "the first without the methods that cut inside the language model, where means cannot differ",
        ),
        strict=True,
    )
)


def lines(found: Sequence[Agreement]) -> list[list[str]]:
    """The table's lines, under `HEAD`."""
    return [_line(one, found) for one in found]


def _line(one: Agreement, found: Sequence[Agreement]) -> list[str]:
    if one.paper is None:
        count = sum(other.scope == one.scope and other.paper is not None for other in found)
        title, methods = f"mean of the {count} tables", MISSING
    else:
        title, methods = one.paper.title, str(len(one.methods))
    by_budget = ", ".join(
        f"{100 * share:.1f} %: {_signed(order.value)} ({sum(pair.printed.share == share for pair in one.pairs)})"
        for share, order in one.by_share.items()
    )
    gap = f"{number(one.difference.value)} [{number(one.difference.low)}, {number(one.difference.high)}]"
    return [title, one.scope, methods, _correlation(one.correlation), by_budget or MISSING, gap]


def _correlation(order: Estimate) -> str:
    return f"{_signed(order.value)} [{_signed(order.low)}, {_signed(order.high)}]"


def _signed(value: float) -> str:
    """Two digits: "+0.48", "−0.53"."""
    text = number(value, 2)
    return text if text == MISSING else f"−{text[1:]}" if text.startswith("-") else f"+{text}"


def sentences(table: Table, found: Sequence[Agreement]) -> list[str]:
    """What the scopes are, and which printed methods have no run to compare at equal means."""
    if not found:
        return []
    said = [PREPARED] if table.model in embedded_names() else []
    asked = printed_kinds(table)
    said += [TASKS.format(tasks=", ".join(asked))] if asked != table.tasks else []
    said += [f"{scope[0].upper()}{scope[1:]}: {SCOPE_WORDS[scope]}." for scope in SCOPES if _has(found, scope)]
    for paper in averages():
        without = uncompared(table, paper) if is_compared(table.model, paper.model) else []
        if without:
            said.append(f"Not compared with {paper.title}, at equal means: {'; '.join(without)}.")
    return said


def _has(found: Sequence[Agreement], scope: str) -> bool:
    return any(one.scope == scope for one in found)


def agreement_csv(found: Sequence[tuple[Table, Sequence[Agreement]]]) -> str:
    """One line for each run that is held against a printed value."""
    head = ("model", "runs", "paper", "table", "printed_method", "printed_share", "printed", "recipe", "mean_share")
    return lines_of(
        (*head, "rel_mean", "difference"),
        (
            (
                *(table.model, one.scope, one.paper.source, one.paper.table, pair.printed.method),
                *map(figure, (100 * pair.printed.share, pair.printed.value)),
                pair.row.recipe,
                *map(figure, (100 * pair.row.mean_share, pair.row.rel_mean)),
                figure((pair.row.rel_mean or 0.0) - pair.printed.value),
            )
            for table, of_table in found
            for one in of_table
            if one.paper is not None
            for pair in one.pairs
        ),
    )
