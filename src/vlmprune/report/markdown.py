"""Tables of a comparison as one Markdown document."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType

from vlmprune.bench.table import NOT_MEASURED, Cell, Ranking, Row, Table
from vlmprune.report import agreement_text
from vlmprune.report.agreement import Agreement
from vlmprune.report.means import WORDS, EqualMeans, equal_means
from vlmprune.report.tables import (
    HARD_WORDS,
    MISSING,
    RANK_WORDS,
    SIGNIFICANT,
    Block,
    blocks,
    budget_words,
    flops_share,
    frames_flops,
    hard_words,
    interval,
    mean_words,
    notes,
    number,
    p_value,
    percent,
    rankings,
    row_name,
    signed_number,
    spread_words,
    value_words,
)

_READING = """\
A cell holds the task's primary metric in percent, its ratio to the same model's unpruned run, and the 95 % interval.
*abs_mean* is the mean of the metrics and *rel_mean* the mean of the ratios, over the same tasks. A method that draws
random numbers has one row for all its seeds: their mean, standard deviation (sd) and range. *kept* is the number of
visual tokens left after the last cut; *entering* is the number that enters a layer of the language model, averaged over
its layers. *FLOPs* are operations up to the first new token as a share of the unpruned model's, by our formula
(encoder, projector, prefill, selection); *4nd²+2n²d+2ndm* and *+3ndm* are the papers' counts of the prefill alone."""
_DIFFERENCES = (
    "Difference to vanilla on the same questions, in points, with its 95 % interval and its p-value after Holm's "
    "correction over the methods:"
)
BUDGET_WORDS = "By budget, which counts what each method's authors count or what the column says:"
_LOYALTY = "Loyalty: the same answer as vanilla's, percent of the questions:"


_FRAMES = """\
The same questions with several numbers of frames. The difference is to the unpruned model with the fewest frames, on
the same questions, in points. Operations of a sample in GFLOPs, up to the first new token: the encoder's, which sees
every frame, and the language model's with the method's own."""


def markdown(tables: Sequence[Table], agreed: Mapping[str, Sequence[Agreement]] = MappingProxyType({})) -> str:
    """One Markdown document with all tables.

    Args:
        agreed: by model, its agreement with published tables.
    """
    parts = ["# Visual token pruning: results", _READING]
    for table in tables:
        parts += [f"## {table.model}", _sizes(table), *_overviews(table)]
        for block in blocks(table):
            parts += [f"### {table.model}, keep {block.title}", _values(table, block)]
            if block.compared:
                parts += [_DIFFERENCES, _of_pruned(table, block, _difference_cell)]
                parts += [_LOYALTY, _of_pruned(table, block, lambda cell: number(cell.loyalty))]
            if block.has_hard:
                parts += [HARD_WORDS, _hard(table, block)]
        if table.by_frames:
            parts += [f"### {table.model}: more frames at an equal budget", _FRAMES, _frames(table)]
        if found := rankings(table):
            parts += [f"### {table.model}: which method is best", RANK_WORDS]
            parts += [part for one in found for part in (f"keep {budget_words(one.asked)}:", _ranks(one))]
        if compared := agreed.get(table.model):
            parts += [f"### {table.model}: agreement with published tables", *_agreement(table, compared)]
    if said := notes(tables):
        parts += ["## Notes", "\n".join(f"- {_escape(note)}" for note in said)]
    return "\n\n".join(parts) + "\n"


def _sizes(table: Table) -> str:
    """Which metric a task has, and on how many questions."""
    items = []
    for task in table.tasks:
        cell = next(row.cells[task] for row in table.rows if task in row.cells)
        items.append(f"{task}: {cell.result.metric}, n = {cell.n}, chance {cell.result.chance:.1f}")
    return "; ".join(items) + "."


def _overviews(table: Table) -> list[str]:
    """At equal means first, where these differ from the budgets."""
    means = equal_means(table)
    if means is None:
        return [_overview(table)]
    return [WORDS, _at_means(means), *means.missing, BUDGET_WORDS, _overview(table)]


def _at_means(means: EqualMeans) -> str:
    titles = (title for one in means.levels for title in (f"mean {one.title}: abs_mean (rel_mean)", "kept / entering"))
    lines = (
        [name, *(text for row in rows for text in ((_mean(row), _tokens(row)) if row else (MISSING, MISSING)))]
        for name, rows in means.lines
    )
    return markdown_table(["method", *titles], list(lines))


def _agreement(table: Table, found: Sequence[Agreement]) -> list[str]:
    said = "\n".join(f"- {_escape(sentence)}" for sentence in agreement_text.sentences(table, found))
    return [agreement_text.READING, markdown_table(agreement_text.HEAD, agreement_text.lines(found)), said]


def _overview(table: Table) -> str:
    """One row per method; for each budget the means and the tokens."""
    shown = blocks(table)
    names = list(dict.fromkeys(row.method for block in shown for row in block.rows))
    titles = (title for block in shown for title in (f"{block.title}: abs_mean (rel_mean)", "kept / entering"))
    lines = []
    for name in names:
        found = [[row for row in block.rows if row.method == name] for block in shown]
        pairs = ((", ".join(map(_mean, rows)), ", ".join(map(_tokens, rows))) for rows in found)
        lines.append([name, *(text or MISSING for pair in pairs for text in pair)])
    return markdown_table(["method", *titles], lines)


def _mean(row: Row) -> str:
    return f"{number(row.abs_mean)} ({percent(row.rel_mean)})"


def _tokens(row: Row) -> str:
    return f"{number(row.tokens_kept)} / {number(row.tokens_entering)}"


def _values(table: Table, block: Block) -> str:
    head = ["method", "kept", "entering", "FLOPs", "4nd²+2n²d+2ndm", "+3ndm", *table.tasks, "abs_mean", "rel_mean"]
    return markdown_table(head, [_value_line(table, block, row) for row in block.rows])


def _value_line(table: Table, block: Block, row: Row) -> list[str]:
    cells = [_value_cell(row.cells.get(task)) for task in table.tasks]
    return [
        row_name(block, row),
        number(row.tokens_kept),
        number(row.tokens_entering),
        *(flops_share(block, row, count) for count in ("total", "papers", "papers_gated")),
        *cells,
        mean_words(row.abs_mean, row.abs_spread),
        mean_words(row.rel_mean, row.rel_spread, " %"),
    ]


def _value_cell(cell: Cell | None) -> str:
    if cell is None:
        return MISSING
    if cell.unmeasured:
        return NOT_MEASURED
    text = f"{value_words(cell)} ({percent(cell.ratio)}) {interval(cell.value)}"
    return text if cell.spread is None else f"{text}; {spread_words(cell.spread)}"


def _of_pruned(table: Table, block: Block, form: Callable[[Cell], str]) -> str:
    """A table of one text for each pruned row and task."""
    lines = [
        [row_name(block, row), *(form(row.cells[task]) if task in row.cells else MISSING for task in table.tasks)]
        for row in block.pruned
    ]
    return markdown_table(["method", *table.tasks], lines)


def _difference_cell(cell: Cell) -> str:
    if cell.diff is None:
        return MISSING
    mark = SIGNIFICANT if cell.significant else ""
    return f"{signed_number(cell.diff.value)}{mark} {interval(cell.diff, signed=True)}, p {p_value(cell.p_holm)}"


def _hard(table: Table, block: Block) -> str:
    lines = [[row_name(block, row), *(hard_words(block, row, task) for task in table.tasks)] for row in block.rows]
    return markdown_table(["method", *table.tasks], lines)


def _frames(table: Table) -> str:
    lines = [
        [
            row.name[0] if row.name[1] is None else f"{row.name[0]}, {row.name[1]} positions",
            row.task,
            str(row.frames),
            *(number(tokens) for tokens in (row.tokens_before, row.tokens_kept, row.tokens_entering)),
            f"{number(row.value.value)} {interval(row.value)}",
            MISSING if row.diff is None else f"{signed_number(row.diff.value)} {interval(row.diff, signed=True)}",
            *frames_flops(row),
        ]
        for row in table.by_frames
    ]
    head = ["method", "task", "frames", "tokens", "kept", "entering", "value", "difference", "encoder", "LLM"]
    return markdown_table(head, lines)


def _ranks(ranking: Ranking) -> str:
    lines = [
        [row.method, percent(place.best), f"{number(place.rank)} [{number(place.low)}, {number(place.high)}]"]
        for row, place in ranking.places
    ]
    return markdown_table(["method", f"best {ranking.measure}", "mean rank"], lines)


def _escape(text: str) -> str:
    return text.replace("|", "\\|").replace("*", "\\*")


def markdown_table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table whose first column is text."""

    def line(cells: Iterable[str]) -> str:
        return "| " + " | ".join(map(_escape, cells)) + " |"

    rule = "| " + " | ".join("---" if k == 0 else "---:" for k in range(len(head))) + " |"
    return "\n".join([line(head), rule, *(line(cells) for cells in lines)])
