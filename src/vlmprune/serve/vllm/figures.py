"""Counters of a server with vLLM, on vLLM's own page of metrics, in whichever process they are raised.

Its servers know what comes of a prompt, and its engines how long they select. Prometheus' client adds up what several
processes count in files of one folder, as vLLM lets it do for several servers.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Mapping, MutableMapping
from functools import lru_cache
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp

from vlmprune.serve.metrics import COUNTERS

FOLDER = "PROMETHEUS_MULTIPROC_DIR"  # read when prometheus_client is imported
SELECTION = ("selection_seconds_total",)  # of an engine
OF_SERVER = (
    "images_total",
    "visual_tokens_before_total",
    "visual_tokens_after_total",
    "canary_total",
    "canary_disagreements_total",
    "canary_failures_total",
    "canary_skipped_total",
)
WORDS = {**COUNTERS, "canary_skipped_total": "Comparisons left out because too many were waiting."}


class Counters:
    """Those of one process.

    Args:
        names: without the prefix `vlmprune_`.
    """

    def __init__(self, names: tuple[str, ...]) -> None:
        from prometheus_client import Counter

        self._counters = {name: Counter(f"vlmprune_{name}", WORDS[name]) for name in names}

    def add(self, amounts: Mapping[str, float]) -> None:
        """Raise these counters."""
        for name, amount in amounts.items():
            self._counters[name].inc(amount)


@lru_cache
def counters(names: tuple[str, ...]) -> Counters:
    """The same ones for each engine or server of a process: a page of metrics has each name once."""
    return Counters(names)


def share_folder(variables: MutableMapping[str, str]) -> None:
    """Give the processes of a server, which this one becomes, a folder for their counters, unless the user did."""
    if FOLDER not in variables:
        variables[FOLDER] = mkdtemp(prefix=_prefix())


def drop_folder_at_exit() -> None:
    """Delete the folder when the process ends that made it."""
    atexit.register(_drop, os.environ.get(FOLDER, ""))


def _drop(folder: str) -> None:
    if Path(folder).name.startswith(_prefix()):
        rmtree(folder, ignore_errors=True)


def _prefix() -> str:
    return f"vlmprune-{os.getpid()}-"
