"""The default run, as a user starts it: both embedded models, every method and budget, killed on its way."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

QUESTIONS = 40
COMMAND = [sys.executable, "-m", "vlmprune.cli", "bench", "--limit", str(QUESTIONS), "--out", "results"]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def recorded(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*.jsonl"))


def run(folder: Path) -> str:
    return subprocess.run(COMMAND, cwd=folder, capture_output=True, text=True, check=True).stdout


@pytest.mark.slow
def test_killed_twice_and_continued_is_the_uninterrupted_run(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir(), broken.mkdir()
    printed = run(whole)
    size = recorded(whole)
    for share in (0.2, 0.7):
        process = subprocess.Popen(COMMAND, cwd=broken, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 600
        while recorded(broken) < share * size:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert not (broken / "results" / "report").exists()
    tables = printed[printed.index("llava, ") :]
    assert run(broken).endswith(tables)
    assert contents(broken / "results") == contents(whole / "results")
    for model in ("llava", "qwen2_5_vl"):
        assert f"{model}, {QUESTIONS} questions per task" in tables

    # the report is made of the records alone
    first = contents(whole / "results" / "report")
    shutil.rmtree(whole / "results" / "report")
    subprocess.run(
        [sys.executable, "-m", "vlmprune.cli", "report", "results"], cwd=whole, check=True, capture_output=True
    )
    assert contents(whole / "results" / "report") == first
