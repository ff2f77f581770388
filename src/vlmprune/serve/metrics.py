"""Counters of a server, in the text format that Prometheus reads."""

from __future__ import annotations

import threading
from collections.abc import Mapping

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
COUNTERS = {
    "requests_total": "Requests for a reply.",
    "client_errors_total": "Requests refused because of what they asked.",
    "server_errors_total": "Requests that failed for another reason.",
    "cancelled_total": "Streams whose client went away.",
    "images_total": "Images and videos in prompts that were run.",
    "visual_tokens_before_total": "Visual tokens of prompts before pruning.",
    "visual_tokens_after_total": "Visual tokens of prompts that are left after the last stage.",
    "selection_seconds_total": "Time spent scoring and selecting tokens.",
    "prefill_seconds_total": "Time of first forwards: encoder, selection and language model.",
    "generation_seconds_total": "Time of whole generations.",
    "canary_total": "Requests whose reply was compared with the unpruned model's.",
    "canary_disagreements_total": "Those of them whose two replies differ.",
    "canary_failures_total": "Comparisons that failed.",
}


class Metrics:
    """Counters that any thread may raise."""

    def __init__(self) -> None:
        self._values = dict.fromkeys(COUNTERS, 0.0)
        self._lock = threading.Lock()

    def add(self, amounts: Mapping[str, float]) -> None:
        """Raise these counters together: a reader sees all of it or nothing."""
        with self._lock:
            for name, amount in amounts.items():
                self._values[name] += amount

    def values(self) -> dict[str, float]:
        """All counters at one moment, by name."""
        with self._lock:
            return dict(self._values)

    def text(self) -> str:
        """The page that Prometheus collects."""
        lines = []
        for name, value in self.values().items():
            lines += [f"# HELP vlmprune_{name} {COUNTERS[name]}", f"# TYPE vlmprune_{name} counter"]
            lines.append(f"vlmprune_{name} {value:.10g}")
        return "\n".join(lines) + "\n"
