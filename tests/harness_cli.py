"""What tests of the command line share."""

from __future__ import annotations

from pathlib import Path

import pytest

from vlmprune import cli


def assert_one_sentence(arguments: list[str], sentence: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A mistake is told in one sentence, ends with 2, and leaves no files in the folder in which it was made."""
    assert cli.main(arguments) == 2
    shown = capsys.readouterr()
    assert sentence in shown.err and shown.err.count("\n") == 1 and not shown.out
    assert not list(folder.iterdir()), "a mistake leaves no files"
