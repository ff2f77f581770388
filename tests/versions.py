"""What the versions of transformers in the window call differently, and what they say about names that go away."""

from __future__ import annotations

import inspect
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import LlavaForConditionalGeneration
from transformers.cache_utils import Cache

_NAMES = ("cache", "past_key_values")  # since 5.24, and before
CACHE = next(name for name in _NAMES if name in inspect.signature(LlavaForConditionalGeneration.forward).parameters)


def behind(cache: Cache) -> dict[str, Any]:
    """The keyword argument that lets a forward or `generate` go on behind a cache."""
    return {CACHE: cache}


def cache_of(output: Any) -> Cache:
    """The cache in what a forward or `generate` returned."""
    return output[CACHE]


@contextmanager
def deprecations() -> Iterator[list[str]]:
    """Notes what Python or transformers says of deprecated things while the block runs, each time it is said."""
    said: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "deprecat" in record.getMessage().lower():
                said.append(record.getMessage())

    handler, logger = Handler(), logging.getLogger("transformers")
    once: Any = logging.Logger.warning_once  # type: ignore[attr-defined]  # transformers puts it there, with a memory
    level = logger.level
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        once.cache_clear()
        logger.addHandler(handler)
        logger.setLevel(logging.WARNING)
        try:
            yield said
        finally:
            logger.setLevel(level)
            logger.removeHandler(handler)
            once.cache_clear()
            said += [
                str(warning.message)
                for warning in caught
                if issubclass(warning.category, (DeprecationWarning, FutureWarning, PendingDeprecationWarning))
            ]
