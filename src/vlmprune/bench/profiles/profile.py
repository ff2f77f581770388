"""What a profile is: a table of a paper as a plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vlmprune.bench.plan import Plan
from vlmprune.bench.protocols import Pixels
from vlmprune.core.budget import OWN, Keep

ABS, REL = "abs", "rel"  # the columns of our tables: the mean of the figures, the mean of their ratios to vanilla


@dataclass(frozen=True, kw_only=True)
class Profile:
    """The settings of a paper's table, each of which an option of the command overrides.

    Attributes:
        name: "hiprune:table3".
        source: the table, for people.
        models: hub ids.
        methods: without budgets, or recipes that carry their own.
        keeps: budgets.
        budget: what these count. "own" also where the paper counts the mean over the layers with an option of the
            method, as `fastv(average=True)` and `pyramiddrop(average=True)` do.
        tasks: in the paper's order.
        protocol: of all tasks but those that `protocols` names.
        pixels: limits of a picture's size where the paper gives some.
        text_tower: for methods that compare the image with the question.
        mean: which of our columns the paper's average is.
        scale: what the mean is of, where that is not plain: how MME is counted.
        batch_size: questions a batch.
        notes: what is known to differ from the paper, a sentence each.
    """

    name: str
    source: str
    models: tuple[str, ...]
    methods: tuple[str, ...]
    keeps: tuple[Keep, ...]
    tasks: tuple[str, ...]
    protocol: str
    protocols: Mapping[str, str] = field(default_factory=dict)
    pixels: Pixels | None = None
    text_tower: str | None = None
    mean: str = ""
    scale: str = ""
    budget: str = OWN
    batch_size: int = 1
    notes: tuple[str, ...] = ()

    @property
    def paper(self) -> str:
        return self.name.partition(":")[0]

    def plan(self, given: Mapping[str, Any]) -> Plan:
        """The plan of the table.

        Args:
            given: fields of the plan that are to be other than the paper's. A protocol is then that of all tasks. A
                text tower stays with the paper's models.
        """
        ours: dict[str, Any] = {
            "models": self.models,
            "methods": self.methods,
            "keeps": self.keeps,
            "budget": self.budget,
            "tasks": self.tasks,
            "protocol": self.protocol,
            "protocols": {} if "protocol" in given else self.protocols,
            "pixels": self.pixels,
            "text_tower": self.text_tower if set(given.get("models", self.models)) <= {*self.models} else None,
            "batch_size": self.batch_size,
            "limit": None,
        }
        return Plan(**(ours | dict(given)))

    def said(self) -> list[str]:
        """What to know of the table, in sentences."""
        mean = {
            ABS: "the mean of the figures, our column abs",
            REL: "the mean of the ratios to vanilla, our column rel",
        }
        average = [f"Its average is {mean[self.mean]}{', ' + self.scale if self.scale else ''}."] if self.mean else []
        return [f"{self.source}.", *average, *self.notes]
