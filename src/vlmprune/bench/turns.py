"""What was measured in one turn of a timing. Reports read it, so it needs no model and no library of models."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Turn:
    """Seconds of one generation of a batch.

    Attributes:
        vision: the vision tower.
        method: scoring and selecting, as `session.last.seconds` says.
        ticks: from the start to each new token of the batch.
        joules: that the GPU used, None where it does not count them.
    """

    vision: float
    method: float
    ticks: tuple[float, ...]
    joules: float | None = None

    @property
    def first(self) -> float:
        """Up to the first new token."""
        return self.ticks[0]

    @property
    def prefill(self) -> float:
        """Up to the first new token without tower and method: projector, language model, generate's own work."""
        return self.first - self.vision - self.method

    def decode(self, new_tokens: int) -> float | None:
        """One token after the first, mean over an answer of so many; None where there is no such token."""
        return (self.ticks[new_tokens - 1] - self.first) / (new_tokens - 1) if new_tokens > 1 else None

    def total(self, new_tokens: int) -> float:
        """An answer of so many tokens."""
        return self.ticks[new_tokens - 1]


@dataclass(frozen=True)
class Counts:
    """What is the same in every turn, of a batch of equal samples.

    Attributes:
        before, after: visual tokens a sample, of the full image and after the last cut.
        encoded: visual tokens a sample that the encoder made.
        stages: (decoder layer, visual tokens after it) of each cut.
        passes: patches of each pass of the vision tower, of the whole batch.
        kv_bytes: keys and values in the cache at the end; what layers without attention keep is not in it.
    """

    before: int
    after: int
    encoded: int
    stages: tuple[tuple[int, int], ...]
    passes: tuple[int, ...]
    kv_bytes: int
