"""One thread a process: tests run side by side, and sums in one order are the same on every machine.

And two marks: of the tests that are repeated with other versions of the libraries, and of those not run by default.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported, and for the processes that tests start

import pytest
import torch
from selection import SELECTION
from thinning import mark

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from harness_browser import chromium  # which skips where there is no Playwright

    with chromium() as found:
        yield found


@pytest.fixture
def unadapted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The generic adapter runs its families (vlmprune.testing.generic), also those that have their own by now."""
    from vlmprune import models
    from vlmprune.testing.generic import USUAL

    names = {family.name for family in USUAL.values()}
    others = {name: adapter for name, adapter in models.FAMILIES.items() if name not in names}
    monkeypatch.setattr(models, "FAMILIES", others)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """`-m window` need not import the files of which nothing is selected."""
    unwanted = collection_path.name.startswith("test_") and collection_path.name not in SELECTION
    return True if unwanted and config.option.markexpr == "window" else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    mark(items)
    for item in items:
        part = SELECTION.get(item.path.name)
        if part and isinstance(item, pytest.Function):
            values = item.callspec.params if hasattr(item, "callspec") else {}
            if part.has(item.originalname, values):
                item.add_marker("window")
