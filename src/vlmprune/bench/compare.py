"""From finished runs to tables.

Every figure is computed from records. A ratio or a difference is always to the vanilla run of the same setting; there
is no way to give a baseline by hand.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

from vlmprune.bench.flops import Flops, run_flops
from vlmprune.bench.marks import runnable
from vlmprune.bench.more_frames import FramesRow, frames_rows
from vlmprune.bench.ranks import ABS, REL, standings
from vlmprune.bench.runs import Group, Groups, Name, groups_of, loyalty, score_on, wrong_on
from vlmprune.bench.significance import compare, holm
from vlmprune.bench.stats import difference, estimate
from vlmprune.bench.store import Record, Result, load_results
from vlmprune.bench.table import ENOUGH_HARD, Asked, Cell, Hard, Ranking, Row, Spread, Table
from vlmprune.core.errors import UserError
from vlmprune.core.shape import Shape
from vlmprune.scoring.metrics import accuracy_by_category, unparsed_share
from vlmprune.tasks.frames import read_framed

# Points. Closer to chance than this, the unpruned model cannot do a task, so that pruning cannot hurt it.
NEAR_CHANCE = 10.0


def build_tables(folder: str | Path) -> list[Table]:
    """The tables of a result folder, one per model (see `store.load_results` for what is in them)."""
    return tables_of(load_results(folder))


def tables_of(results: Iterable[Result]) -> list[Table]:
    """Tables from results in table order.

    Raises:
        UserError: records are lost or broken, runs are not on the same samples, or none could be asked.
    """
    by_model: dict[str, list[Result]] = {}
    for result in results:
        by_model.setdefault(result.model, []).append(result)
    return [_table(model, of_model) for model, of_model in by_model.items()]


def _table(model: str, results: Sequence[Result]) -> Table:
    groups, not_asked = groups_of(results)
    if not groups:
        raise UserError(f"No question of {model}'s runs could be asked: their records say why.")
    vanilla = {task: group for of_row in groups.values() for task, group in of_row.items() if group.is_vanilla}
    hard = _hard(groups)
    cells = {
        name: {task: _cell(group, vanilla.get(task), hard) for task, group in of_row.items()}
        for name, of_row in groups.items()
    }
    cells = _corrected(cells)
    tasks = tuple(dict.fromkeys(result.task for result in results if any(result.task in row for row in cells.values())))
    left_out = {task: why for task in tasks if (why := _why_left_out(task, vanilla, cells)) is not None}
    averaged = tuple(task for task in tasks if task not in left_out)
    rows = {name: _row(of_row, groups[name], averaged, vanilla) for name, of_row in cells.items()}
    dimensions = {result.task: result.dimension for result in results}
    rankings = _rankings(rows, groups, averaged, vanilla)
    frames = _by_frames(cells, groups)
    return Table(model, tasks, averaged, left_out, tuple(rows.values()), dimensions, rankings, not_asked, frames)


def _cell(group: Group, base: Group | None, hard: Mapping[tuple[str, Asked, str | None], frozenset[str]]) -> Cell:
    ratio, diff, test, loyal = None, None, None, None
    if base is not None:
        whole = base.units.value
        ratio = 100.0 * group.units.value / whole if whole > 0 else None
        if not group.is_vanilla and not math.isnan(group.units.value - whole):
            diff, test = difference(group.units, base.units), compare(group.units, base.units)
            loyal = loyalty(group, base)
    result = group.results[0]
    wrong = {
        asked: ids
        for (task, asked, positions), ids in hard.items()
        if task == result.task and (group.is_vanilla or (asked, positions) == (_asked(result), result.positions))
    }
    sums = [group.units.metric.details(counts.sum(0)) for counts in group.units.counts]
    kinds = [accuracy_by_category(records) for records in group.records]
    return Cell(
        value=estimate(group.units),
        spread=Spread(group.seeds, group.units.values) if len(group.seeds) > 1 else None,
        ratio=ratio,
        diff=diff,
        test=test,
        p_holm=None,
        n=len(group.records[0]),
        units=group.units.n,
        unparsed=fmean(unparsed_share(records) for records in group.records),
        loyalty=loyal,
        accuracy=score_on(group),
        hard={
            asked: Hard(score_on(group, ids) if len(ids) >= ENOUGH_HARD else None, len(ids))
            for asked, ids in wrong.items()
        },
        details={name: fmean(of_seed[name] for of_seed in sums) for name in sums[0]},
        categories={name: fmean(of_seed[name] for of_seed in kinds) for name in kinds[0]},
        results=group.results,
        counted=group.units,
    )


def _asked(result: Result) -> Asked | None:
    return None if result.keep is None else (result.keep, result.budget)


def _hard(groups: Groups) -> dict[tuple[str, Asked, str | None], frozenset[str]]:
    """The questions that `downsample` gets wrong, by task, budget and position policy."""
    return {
        (task, asked, group.results[0].positions): wrong_on(group)
        for of_row in groups.values()
        for task, group in of_row.items()
        if group.results[0].method == "downsample" and (asked := _asked(group.results[0])) is not None
    }


def _corrected(cells: dict[Name, dict[str, Cell]]) -> dict[Name, dict[str, Cell]]:
    """With Holm's correction. A family of tests: all methods of this model at one budget on one task."""
    families: dict[tuple[Asked | None, str], list[tuple[Name, float]]] = {}
    for name, of_row in cells.items():
        for task, cell in of_row.items():
            if cell.test is not None:
                families.setdefault((_asked(cell.result), task), []).append((name, cell.test.p))
    adjusted = {
        (name, task): p
        for (_, task), tests in families.items()
        for (name, _), p in zip(tests, holm([p for _, p in tests]), strict=True)
    }
    return {
        name: {task: replace(cell, p_holm=adjusted.get((name, task))) for task, cell in of_row.items()}
        for name, of_row in cells.items()
    }


def _why_left_out(task: str, vanilla: dict[str, Group], cells: dict[Name, dict[str, Cell]]) -> str | None:
    if task not in vanilla:
        return "the unpruned model has not been run"
    base = vanilla[task].results[0]
    if any(of_row[task].unmeasured for of_row in cells.values() if task in of_row):
        return "not measured: its replies need a judge"
    value, chance = cells[(base.recipe, base.positions)][task].value.value, base.chance
    if math.isnan(value):  # F1 of questions whose right answer is never yes
        return f"{base.metric} has no value on these questions"
    if value - chance < NEAR_CHANCE:
        return f"unpruned {value:.1f}, chance {chance:.1f}"
    return None


def _row(cells: dict[str, Cell], groups: dict[str, Group], averaged: Sequence[str], vanilla: dict[str, Group]) -> Row:
    first = next(iter(cells.values())).result
    samples = [record for group in groups.values() for records in group.records for record in records]
    complete = bool(averaged) and all(task in cells for task in averaged)
    ratios = [cells[task].ratio for task in averaged if task in cells]
    known = [ratio for ratio in ratios if ratio is not None]
    spreads = [spread for task in averaged if task in cells and (spread := cells[task].spread) is not None]
    several = complete and len(spreads) == len(averaged) and len({spread.seeds for spread in spreads}) == 1
    wholes = [vanilla[task].units.value for task in averaged]
    return Row(
        method=first.method if first.positions is None else f"{first.method}, {first.positions} positions",
        keep=first.keep,
        budget=first.budget,
        recipe=first.recipe,
        cells=cells,
        tokens_before=fmean(record.visual_before for record in samples),
        tokens_kept=fmean(record.visual_kept for record in samples),
        tokens_entering=fmean(record.visual_entering for record in samples),
        flops=_flops(first, samples),
        abs_mean=fmean(cells[task].value.value for task in averaged) if complete else None,
        rel_mean=fmean(known) if complete and len(known) == len(averaged) else None,
        abs_spread=_mean_spread(spreads, [100.0] * len(spreads)) if several else None,
        rel_spread=_mean_spread(spreads, wholes) if several else None,
    )


def _by_frames(cells: Mapping[Name, Mapping[str, Cell]], groups: Groups) -> tuple[FramesRow, ...]:
    """Rows for each number of frames, of tasks that were run with several."""
    values, flops = {}, {}
    for name, task in ((name, task) for name, row in groups.items() for task in row):
        if (asked := read_framed(task)) is not None:
            group = groups[name][task]
            values[name, task] = cells[name][task].value
            flops[name, task] = _flops(group.results[0], [one for each in group.records for one in each], asked[1])
    return frames_rows(groups, values, flops)


def _mean_spread(spreads: Sequence[Spread], wholes: Sequence[float]) -> Spread:
    """The mean over tasks of each seed's values as a percentage of `wholes`."""
    of_seeds = zip(*(spread.values for spread in spreads), strict=True)
    means = [fmean(100.0 * value / whole for value, whole in zip(of, wholes, strict=True)) for of in of_seeds]
    return Spread(spreads[0].seeds, tuple(means))


def _flops(result: Result, samples: Sequence[Record], frames: int = 0) -> Flops | None:
    """Operations a sample, with so many frames where that is known.

    None where nothing is known of the model, or the file of a method has gone or changed.
    """
    text = runnable(result.recipe, result.code, result.files)
    return run_flops(Shape(**result.shape), text, samples, frames) if result.shape and text is not None else None


def _rankings(
    rows: Mapping[Name, Row], groups: Groups, averaged: Sequence[str], vanilla: dict[str, Group]
) -> tuple[Ranking, ...]:
    """Of the methods at each budget that all averaged tasks were run with; recipes with their own have no rank."""
    by_budget: dict[Asked, list[Name]] = {}
    for name, row in rows.items():
        if row.asked is not None and not row.is_vanilla and row.rel_mean is not None:
            by_budget.setdefault(row.asked, []).append(name)
    found = []
    for asked, names in by_budget.items():
        if len(names) < 2:
            continue
        units = [[groups[name][task].units for task in averaged] for name in names]
        for measure in (REL, ABS):
            places = standings(units, [vanilla[task].units for task in averaged], measure)
            pairs = zip((rows[name] for name in names), places, strict=True)
            found.append(Ranking(asked, measure, tuple(sorted(pairs, key=lambda pair: pair[1].rank))))
    return tuple(found)
