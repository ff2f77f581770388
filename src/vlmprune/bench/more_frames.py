"""What more frames are worth at an equal budget: tasks that were run with several numbers of frames, side by side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean

from vlmprune.bench.flops import Flops
from vlmprune.bench.runs import Group, Groups, Name
from vlmprune.bench.stats import Estimate, difference
from vlmprune.tasks.frames import read_framed


@dataclass(frozen=True)
class FramesRow:
    """One method on one task with one number of frames.

    Attributes:
        task: without the frames.
        frames: of each video.
        name: of the row: recipe and position policy.
        tokens_before, tokens_kept, tokens_entering: visual tokens, mean over the samples.
        value: the task's primary metric.
        diff: to the unpruned model with the fewest frames (`base`), on the same questions; None where that was not run
            or could not be asked the same.
        base: the fewest frames.
        flops: operations of a sample, the encoder's apart; None where nothing is known of the model.
    """

    task: str
    frames: int
    name: Name
    tokens_before: float
    tokens_kept: float
    tokens_entering: float
    value: Estimate
    diff: Estimate | None
    base: int
    flops: Flops | None


def frames_rows(
    groups: Groups, values: Mapping[tuple[Name, str], Estimate], flops: Mapping[tuple[Name, str], Flops | None]
) -> tuple[FramesRow, ...]:
    """By task, then method, from the fewest frames to the most.

    Args:
        values, flops: of a row and task.
    """
    asked = dict.fromkeys((name, task) for name, row in groups.items() for task in row)
    parts = {task: found for _, task in asked if (found := read_framed(task)) is not None}
    fewest: dict[str, int] = {}
    for task, frames in parts.values():
        fewest[task] = min(frames, fewest.get(task, frames))
    bases = {
        parts[task][0]: groups[name][task]
        for name, task in asked
        if task in parts and groups[name][task].is_vanilla and parts[task][1] == fewest[parts[task][0]]
    }
    rows = []
    for name, task in asked:
        if task in parts:
            group, (plain, frames) = groups[name][task], parts[task]
            records = [record for records in group.records for record in records]
            rows.append(
                FramesRow(
                    plain,
                    frames,
                    name,
                    fmean(record.visual_before for record in records),
                    fmean(record.visual_kept for record in records),
                    fmean(record.visual_entering for record in records),
                    values[name, task],
                    _difference(group, bases.get(plain)),
                    fewest[plain],
                    flops[name, task],
                )
            )
    places = {name: place for place, name in enumerate(groups)}
    tasks = list(fewest)
    return tuple(sorted(rows, key=lambda row: (tasks.index(row.task), places[row.name], row.frames)))


def _difference(group: Group, base: Group | None) -> Estimate | None:
    """None for the base itself, and where other questions could not be asked."""
    if base is None or group is base or _ids(group) != _ids(base):
        return None
    return difference(group.units, base.units)


def _ids(group: Group) -> list[str]:
    return [record.id for record in group.records[0]]
