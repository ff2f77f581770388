"""What a server runs: a model, how it is pruned, and what a request may change of that."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from vlmprune.core.budget import ByAge
from vlmprune.core.recipe import Recipe
from vlmprune.serve.comparison import check_share
from vlmprune.serve.metrics import Metrics
from vlmprune.serve.wanted import Allowed, Wanted, check_request_keep, check_request_query, under

if TYPE_CHECKING:
    from vlmprune.bench.load import Loaded


@dataclass
class Serving:
    """One model, pruned by one recipe, for any number of requests.

    Attributes:
        loaded: the model.
        recipe: how requests are pruned that say nothing else.
        allowed: what a request may say.
        positions, seed: as `vlmprune.prune` takes them.
        canary: the share of the requests with images that are run unpruned, too.
        lock: a model has one session at a time, so replies are made one after another.
    """

    loaded: Loaded
    recipe: Recipe
    allowed: Allowed = field(default_factory=Allowed)
    positions: str | None = None
    seed: int = 0
    canary: float = 0.0
    metrics: Metrics = field(default_factory=Metrics)
    lock: threading.Lock = field(default_factory=threading.Lock)
    _stopped: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        check_share(self.canary)
        if self.allowed.keep:
            check_request_keep(self.recipe)
        reads = self.session(Wanted()).text is not None
        if self.allowed.query:
            check_request_query(self.recipe, reads)

    @property
    def model(self) -> Any:
        return self.loaded.model

    @property
    def processor(self) -> Any:
        return self.loaded.processor

    def generate(self, arguments: dict[str, Any]) -> Any:
        """`model.generate`, to be called with the lock; it ends early when the server is stopped."""
        criterion = _Stop(self._stopped)
        criterion.check()
        others = arguments.get("stopping_criteria") or []
        return self.model.generate(**{**arguments, "stopping_criteria": StoppingCriteriaList([*others, criterion])})

    def stop(self) -> None:
        """End what is being generated, and wait for it: a process must not end in the middle of it."""
        self._stopped.set()
        with self.lock:
            pass

    def session(self, wanted: Wanted, question: str | None = None, latest: int = 1) -> Any:
        """A session of `vlmprune.prune` for one request, not yet open.

        Args:
            question: what the conversation asks last.
            latest: how many images its last message with images has.

        Raises:
            UserError: the model cannot be pruned so.
        """
        asked = under(self.recipe, wanted.keep)
        asked = Recipe(
            tuple(
                replace(stage, keep=replace(stage.keep, images=latest)) if isinstance(stage.keep, ByAge) else stage
                for stage in asked.stages
            )
        )
        session = self.loaded.session(asked, self.positions, self.seed)
        session.question = wanted.query or question or None
        return session


class StoppedError(RuntimeError):
    """The server is being stopped."""


class _Stop(StoppingCriteria):
    """Ends a generation at its next token."""

    def __init__(self, stopped: threading.Event) -> None:
        self._stopped = stopped

    def check(self) -> None:
        if self._stopped.is_set():
            raise StoppedError("The server is being stopped.")

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        self.check()
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
