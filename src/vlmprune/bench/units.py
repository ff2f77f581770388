"""A task's records as the units that statistics draw: what was counted, and what could have been."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from vlmprune.bench.store import Record
from vlmprune.scoring.metrics import Metric

AT_ONCE = 4_000_000  # numbers that a draw of units may hold in memory
_OTHER = {"yes": "no", "no": "yes"}


@dataclass(frozen=True)
class Units:
    """What a row of a table counted on one task.

    Attributes:
        metric: what is computed from summed counts.
        counts: [seeds, units, columns], as `metric.counts` gives them; one seed but for methods that draw.
        best: [columns] the mean unit, had every answer been right.
        worst: [columns] the mean unit, had every answer been wrong.
    """

    metric: Metric
    counts: np.ndarray
    best: np.ndarray
    worst: np.ndarray

    @property
    def n(self) -> int:
        """Units."""
        return int(self.counts.shape[1])

    @property
    def values(self) -> tuple[float, ...]:
        """The metric of each seed, percent."""
        return tuple(float(self.metric.value(sums)) for sums in self.counts.sum(1))

    @property
    def value(self) -> float:
        """The metric, percent: its mean over the seeds."""
        return float(np.mean(self.values))

    def of(self, sums: np.ndarray) -> np.ndarray:
        """The metric of summed counts, mean over the seeds: [..., seeds, columns] to [...]."""
        return self.metric.value(sums).mean(-1)

    @property
    def is_share(self) -> bool:
        """Whether the metric is a share of the units: each of them counts wholly or not at all."""
        if len(self.counts) > 1:
            return False
        own = self.metric.value(self.counts[0])
        ends = float(self.metric.value(self.worst)), float(self.metric.value(self.best))
        mean = bool(np.isin(own, (0.0, 100.0)).all()) and abs(float(own.mean()) - self.value) < 1e-9
        return mean and ends == (0.0, 100.0)

    @property
    def right(self) -> np.ndarray:
        """Of a share: which units count, [units] of bool."""
        return self.metric.value(self.counts[0]) == 100.0


def units_of(metric: Metric, seeds: Sequence[Sequence[Record]]) -> Units:
    """The units of one row and task.

    Args:
        metric: of the task.
        seeds: the records of each seed, of the same samples in the same order.
    """
    counts = np.stack([metric.counts(records) for records in seeds])
    best, worst = (metric.counts([turn(record) for record in seeds[0]]).mean(0) for turn in (_answered, _missed))
    return Units(metric, counts, best, worst)


def without_problems(runs: Sequence[tuple[Metric, list[Record]]]) -> tuple[list[list[Record]], dict[str, str]]:
    """The records of several runs on one task, without the samples that one of them could not ask.

    Where the metric counts groups of questions as one, the whole group goes.

    Returns:
        The records of each run, and the samples left out: by id the problem, "" for one that goes with its group.

    Raises:
        ValueError: the runs are not of the same samples.
    """
    if len({tuple(record.id for record in records) for _, records in runs}) > 1:
        raise ValueError("Runs on other samples cannot be compared.")
    why: dict[str, str] = {}
    for _, records in runs:
        for record in records:
            if record.problem:
                why.setdefault(record.id, record.problem)
    metric, first = runs[0]
    grouped = bool(why) and len(metric.counts(first)) < len(first)
    groups = {record.group for record in first if record.id in why} if grouped else ()
    out = {r.id: why.get(r.id, "") for r in first if r.id in why or r.group in groups}
    return [[record for record in records if record.id not in out] for _, records in runs], out


def _answered(record: Record) -> Record:
    return replace(record, extracted=record.answers[0] if record.answers else record.extracted, score=1.0)


def _missed(record: Record) -> Record:
    """Wrong in the worst way: the other word where there are two, no answer elsewhere."""
    other = _OTHER.get(record.answers[0]) if record.answers else None
    return replace(record, extracted=other, score=0.0)
