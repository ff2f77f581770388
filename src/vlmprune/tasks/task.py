"""What a task is: where its questions come from, how they are asked, and what is counted."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from vlmprune.data.sample import Sample
from vlmprune.scoring.metrics import Metric
from vlmprune.tasks.canvas import FIXED, Canvas
from vlmprune.tasks.wording import Wording


@dataclass(frozen=True)
class Place:
    """Where samples are taken from.

    Attributes:
        canvas: how generated scenes are drawn for the model.
        data: folder of local copies; None to look on the hub.
        pictures: whether pictures and videos are wanted; replies are scored without.
    """

    canvas: Canvas = FIXED
    data: Path | None = None
    pictures: bool = True


@dataclass(frozen=True, kw_only=True)
class Task(ABC):
    """A benchmark task.

    Attributes:
        name: as given to `--tasks`.
        dimension: the ability it stands for (UniPruneBench's six).
        summary: one line.
        metric: the primary metric.
        chance: the primary metric, percent, without looking: by guessing among the fitting answers or, where that
            is better, by always giving the same one.
        version: raised when questions, answers or scoring change.
        max_new_tokens: length of a reply, where the wording does not say.
        grouped: whether questions come in groups that are scored as one, which a limit does not cut.
        wordings: how a question is put, by protocol (`bench.protocol`); a protocol may have a wording of its own for a
            model type, under "vlmevalkit/qwen2_5_vl".
        judged: whether replies are scored by a language model.
    """

    name: str
    dimension: str
    summary: str
    metric: Metric
    chance: float
    version: int = 1
    max_new_tokens: int = 16
    grouped: bool = False
    wordings: Mapping[str, Wording] = field(default_factory=dict)
    judged: bool = False

    @property
    def has_videos(self) -> bool:
        """Whether it is known to ask about videos alone, before a sample is read."""
        return False

    @property
    def endless(self) -> bool:
        """Whether samples never end."""
        return False

    @property
    def source(self) -> str:
        """Where its data is to be had, and how large it is, for people; "" where that is not to be said."""
        return ""

    @abstractmethod
    def samples(self, place: Place = Place()) -> Iterator[Sample]:
        """All samples in the order of the data, one at a time; endless for generated tasks.

        Raises:
            UserError: the data is not there or cannot be read.
        """
        ...
