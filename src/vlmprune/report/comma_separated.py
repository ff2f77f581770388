"""A comparison as files for other programs: one line per figure, percent, points and tokens with three digits."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields

from vlmprune.bench.stats import Estimate
from vlmprune.bench.table import Cell, Hard, Row, Spread, Table
from vlmprune.core.budget import OWN, Keep
from vlmprune.report.flips import Flip, Flips
from vlmprune.report.tables import MISSING, SIGNIFICANT, flags, number

Column = Callable[[Table, Row, str, Cell], object]


def _hard(row: Row, cell: Cell) -> Hard:
    """On what `downsample` gets wrong at the row's own budget; nothing for vanilla, which has no budget of its own."""
    nothing = Hard(None, 0)
    return nothing if row.is_vanilla or row.asked is None else cell.hard.get(row.asked, nothing)


_COLUMNS: dict[str, Column] = {
    "model": lambda table, row, task, cell: table.model,
    "method": lambda table, row, task, cell: row.method,
    "keep": lambda table, row, task, cell: _keep(row.keep),
    "budget": lambda table, row, task, cell: row.budget or OWN,
    "recipe": lambda table, row, task, cell: row.recipe,
    "seeds": lambda table, row, task, cell: " ".join(map(str, row.seeds)),
    "task": lambda table, row, task, cell: task,
    "dimension": lambda table, row, task, cell: cell.result.dimension,
    "protocol": lambda table, row, task, cell: cell.result.protocol,
    "metric": lambda table, row, task, cell: cell.result.metric,
    "chance": lambda table, row, task, cell: figure(cell.result.chance),
    "in_averages": lambda table, row, task, cell: int(task in table.averaged),
    "n": lambda table, row, task, cell: cell.n,
    "units": lambda table, row, task, cell: cell.units,
    "value": lambda table, row, task, cell: figure(cell.value.value),
    "low": lambda table, row, task, cell: figure(cell.value.low),
    "high": lambda table, row, task, cell: figure(cell.value.high),
    "sd": lambda table, row, task, cell: _sd(cell.spread),
    "lowest_seed": lambda table, row, task, cell: figure(None if cell.spread is None else cell.spread.low),
    "highest_seed": lambda table, row, task, cell: figure(None if cell.spread is None else cell.spread.high),
    "ratio": lambda table, row, task, cell: figure(cell.ratio),
    "difference": lambda table, row, task, cell: figure(cell.diff and cell.diff.value),
    "difference_low": lambda table, row, task, cell: figure(cell.diff and cell.diff.low),
    "difference_high": lambda table, row, task, cell: figure(cell.diff and cell.diff.high),
    "test": lambda table, row, task, cell: cell.test.name if cell.test else "",
    "p": lambda table, row, task, cell: _p(cell.test and cell.test.p),
    "p_holm": lambda table, row, task, cell: _p(cell.p_holm),
    "significant": lambda table, row, task, cell: int(cell.significant) if cell.p_holm is not None else "",
    "loyalty": lambda table, row, task, cell: figure(cell.loyalty),
    "accuracy": lambda table, row, task, cell: figure(cell.accuracy),
    "hard_accuracy": lambda table, row, task, cell: figure(_hard(row, cell).value),
    "hard_n": lambda table, row, task, cell: _hard(row, cell).n or "",
    "unparsed": lambda table, row, task, cell: figure(cell.unparsed),
    "tokens_before": lambda table, row, task, cell: figure(row.tokens_before),
    "tokens_kept": lambda table, row, task, cell: figure(row.tokens_kept),
    "tokens_entering": lambda table, row, task, cell: figure(row.tokens_entering),
    "gflops": lambda table, row, task, cell: figure(_billions(row.flops and row.flops.total)),
    "gflops_papers": lambda table, row, task, cell: figure(_billions(row.flops and row.flops.papers)),
    "gflops_papers_gated": lambda table, row, task, cell: figure(_billions(row.flops and row.flops.papers_gated)),
    "abs_mean": lambda table, row, task, cell: figure(row.abs_mean),
    "abs_mean_sd": lambda table, row, task, cell: _sd(row.abs_spread),
    "rel_mean": lambda table, row, task, cell: figure(row.rel_mean),
    "rel_mean_sd": lambda table, row, task, cell: _sd(row.rel_spread),
    "flags": lambda table, row, task, cell: flags(cell) + (SIGNIFICANT if cell.significant else ""),
}


def summary(tables: Sequence[Table]) -> str:
    """One line per model, method, budget and task."""
    return lines_of(
        _COLUMNS,
        (
            [column(table, row, task, row.cells[task]) for column in _COLUMNS.values()]
            for table in tables
            for row in table.rows
            for task in table.tasks
            if task in row.cells
        ),
    )


def categories(tables: Sequence[Table]) -> str:
    """Plain accuracy of each question type, one line per model, method, budget, task and type."""
    return lines_of(
        ("model", "method", "keep", "recipe", "task", "category", "accuracy"),
        (
            (table.model, row.method, _keep(row.keep), row.recipe, task, name, figure(value))
            for table in tables
            for row in table.rows
            for task in table.tasks
            if task in row.cells
            for name, value in row.cells[task].categories.items()
        ),
    )


def ranks(tables: Sequence[Table]) -> str:
    """One line per model, budget, measure and method: how often it is the best, and its mean rank with its interval."""
    return lines_of(
        ("model", "keep", "budget", "measure", "method", "recipe", "best", "rank", "rank_low", "rank_high"),
        (
            (
                *(table.model, one.asked[0], one.asked[1] or OWN, one.measure, row.method, row.recipe),
                *map(figure, vars(place).values()),
            )
            for table in tables
            for one in table.rankings
            for row, place in one.places
        ),
    )


def frames(tables: Sequence[Table]) -> str:
    """One line per model, task with several numbers of frames, method and number."""
    return lines_of(
        (
            "model", "task", "recipe", "positions", "frames", "tokens_before", "tokens_kept", "tokens_entering",
            "value", "value_low", "value_high", "diff", "diff_low", "diff_high",
            "gflops_encoder", "gflops_projector", "gflops_prefill", "gflops_selection",
        ),
        (
            (
                *(table.model, row.task, row.name[0], row.name[1] or "", row.frames),
                *map(figure, (row.tokens_before, row.tokens_kept, row.tokens_entering)),
                *_estimate(row.value),
                *_estimate(row.diff),
                *(figure(_billions(value)) for value in (row.flops[:4] if row.flops else (None,) * 4)),
            )
            for table in tables
            for row in table.by_frames
        ),
    )  # fmt: skip


def _estimate(found: Estimate | None) -> list[str]:
    return [figure(value) for value in ((found.value, found.low, found.high) if found else (None,) * 3)]


def flipped(found: Sequence[tuple[Table, Sequence[Flips]]]) -> str:
    """One line per answer that pruning changed from right to wrong ("broken") or back ("repaired")."""
    return lines_of(
        ("model", "method", "keep", "recipe", "flip", *(field.name for field in fields(Flip))),
        (
            (table.model, item.row.method, _keep(item.row.keep), item.row.recipe, name, *vars(one).values())
            for table, items in found
            for item in items
            for name, changed in (("broken", item.broken), ("repaired", item.repaired))
            for one in changed
        ),
    )


def lines_of(head: Iterable[str], lines: Iterable[Iterable[object]]) -> str:
    """A file of a head and lines."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(lines)
    return out.getvalue()


def _keep(keep: Keep | None) -> Keep | str:
    return "" if keep is None else keep


def _billions(value: float | None) -> float | None:
    return None if value is None else value / 1e9


def figure(value: float | None) -> str:
    """With three digits; nothing where there is none."""
    return "" if value is None else number(value, 3).replace(MISSING, "")


def _sd(spread: Spread | None) -> str:
    return figure(None if spread is None else spread.sd)


def _p(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"
