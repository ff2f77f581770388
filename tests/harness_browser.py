"""What tests in a browser share: the system's Chromium, driven by Playwright, and the widths of its windows."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

playwright = pytest.importorskip(
    "playwright.sync_api", reason="Playwright is not installed: python3 tools/extras.py demo runs this with it"
)
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here: apt-get install chromium")
DESK, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
PATIENCE = 60_000  # ms that anything may take on a busy machine


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser without a window."""
    with playwright.sync_playwright() as driver:
        options = ["--no-sandbox", "--disable-dev-shm-usage"]  # for containers
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=options)
        try:
            yield browser
        finally:
            browser.close()


class Visitor:
    """A page in a browser of its own, which fails on errors of scripts and on what comes from another server."""

    def __init__(self, browser: Any, url: str, size: dict[str, int] = DESK, **options: Any) -> None:
        self.context = browser.new_context(viewport=size, **options)
        self.context.set_default_timeout(PATIENCE)
        self.page, self.faults = self.context.new_page(), list[str]()
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on("request", self._look)
        self.home = url.split("?")[0].rstrip("/")
        self.page.goto(url)

    def _look(self, request: Any) -> None:
        if not request.url.startswith((self.home, "data:", "blob:", "file:")):
            self.faults.append(f"asks {request.url}")

    def leave(self) -> None:
        """Close the page.

        Raises:
            AssertionError: something went wrong on it.
        """
        self.context.close()
        assert not self.faults

    @property
    def overflow(self) -> int:
        """Pixels by which the page is wider than its window."""
        return int(self.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth"))


def keep_picture(page: Any, name: str) -> None:
    """Keep a screenshot where the variable VLMPRUNE_SCREENSHOTS names a folder."""
    if folder := os.environ.get("VLMPRUNE_SCREENSHOTS"):
        page.screenshot(path=str(Path(folder) / f"{name}.png"), full_page=True)
