"""What a canary finds: whether the pruned and the unpruned reply to one request agree."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from vlmprune.core.errors import Option, UserError

LOG = logging.getLogger("vlmprune.serve")
FORMAT = "%(levelname)s: %(message)s"
SHOWN = 80  # characters of a reply in the log

Add = Callable[[Mapping[str, float]], None]
Reply = TypeVar("Reply", bound=Sequence)


def check_share(share: float) -> None:
    """Raise UserError unless a canary can run this share of the requests."""
    if not 0.0 <= share <= 1.0:
        raise UserError(Option("canary", share), " must be a share of the requests, from 0 to 1.")


def log_comparisons() -> None:
    """Have the log shown, where whoever runs the process has not set one up."""
    LOG.setLevel(logging.INFO)
    if not LOG.hasHandlers():
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter(FORMAT))
        LOG.addHandler(handler)


def compare(add: Add, request_id: str, ours: Reply, theirs: Reply, *, unit: str, words: Callable[[Reply], str]) -> None:
    """Count a comparison and log it.

    Args:
        add: raises counters.
        ours, theirs: the pruned model's reply and the unpruned one's, unit by unit.
        unit: what the log counts them in.
        words: a reply as text.
    """
    add({"canary_total": 1, "canary_disagreements_total": ours != theirs})
    if ours == theirs:
        LOG.info("canary %s: the pruned and the unpruned reply agree", request_id)
        return
    agree = next((at for at, (a, b) in enumerate(zip(ours, theirs)) if a != b), min(len(ours), len(theirs)))
    texts = (repr(words(reply)[:SHOWN]) for reply in (ours, theirs))
    LOG.info("canary %s: they differ from %s %d: pruned %s, unpruned %s", request_id, unit, agree, *texts)


def failed(add: Add, request_id: str) -> None:
    """Count and log the error that is being handled, by which a comparison failed."""
    add({"canary_failures_total": 1})
    LOG.exception("canary %s: the comparison failed", request_id)
