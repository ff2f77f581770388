"""What the timing scripts share: things measured side by side, in turns, and a file that grows row by row.

Each thing is measured once a turn, and the least of its times counts: what else the machine does can only add to it.
A noise figure is a configuration against itself: the least of its even turns over the least of its odd ones.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

import vlmprune
from vlmprune.bench.load import machine
from vlmprune.bench.plan import split_methods
from vlmprune.bench.store import write_json

RESULTS = Path(__file__).parent / "results"


def clock(device: str) -> float:
    """Seconds: the process's own on a CPU, which other processes do not lengthen; those of the wall on a GPU."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def timed(run: Callable[[], object], device: str = "cpu") -> float:
    """Seconds that a call takes."""
    start = clock(device)
    run()
    return clock(device) - start


def turns(ways: Sequence[Callable[[], float]], repeats: int) -> list[list[float]]:
    """The seconds that each way reports of itself, in milliseconds, turn by turn."""
    times: list[list[float]] = [[] for _ in ways]
    for _ in range(repeats):
        for own, way in zip(times, ways, strict=True):
            own.append(1e3 * way())
    return times


def least(ways: Sequence[Callable[[], float]], repeats: int) -> list[float]:
    """The least of each way's milliseconds over so many turns."""
    return [min(own) for own in turns(ways, repeats)]


def noise(times: Sequence[float]) -> float:
    """The least of every second time over the least of the others: 1 but for what else the machine does."""
    return min(times[1::2]) / min(times[::2])


def parser(doc: str | None, out: str, repeats: int | None) -> argparse.ArgumentParser:
    """The options that every script has; `repeats` only where something is timed."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    if repeats is not None:
        made.add_argument("--repeats", type=int, default=repeats, help=f"turns (default: {repeats})")
    made.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="(default: cpu, on one thread)")
    made.add_argument("--out", type=Path, default=RESULTS / out, help=f"file of the figures (default: {out})")
    return made


def methods_of(text: str) -> list[str]:
    """What `--methods` names: separated by commas, or all."""
    return list(vlmprune.METHODS) if text == "all" else list(split_methods(text))


class Figures:
    """The figures of one script, written anew with each row, so that an interruption loses none.

    Args:
        asked: what `parser` read; further options are noted.
    """

    def __init__(self, asked: argparse.Namespace) -> None:
        if getattr(asked, "repeats", 2) < 2:
            raise SystemExit(f"--repeats must be at least 2, not {asked.repeats}: the noise takes two turns.")
        if asked.device == "cuda" and not torch.cuda.is_available():
            raise SystemExit("--device cuda: there is no GPU that torch can use.")
        if asked.device == "cpu":
            torch.set_num_threads(1)
        self._path: Path = asked.out
        if not self._path.parent.is_dir():
            raise SystemExit(f"--out: there is no folder {str(self._path.parent)!r}.")
        about = machine(nn.Linear(1, 1, device=asked.device).weight)
        versions = {"torch": torch.__version__, "transformers": transformers.__version__}
        settings = {name: value for name, value in vars(asked).items() if name not in ("out", "device")}
        self.made: dict[str, Any] = {"machine": {**about, **versions}, "settings": settings, "rows": []}

    def add(self, **row: Any) -> None:
        """Print a row and write the file."""
        self.made["rows"].append(rounded(row))
        print("  ".join(f"{name}={value}" for name, value in self.made["rows"][-1].items()), flush=True)
        write_json(self._path, self.made)


def rounded(row: dict[str, Any]) -> dict[str, Any]:
    """Floats with four significant digits; ratios near 1 thereby to a thousandth."""
    return {name: float(f"{value:.4g}") if isinstance(value, float) else value for name, value in row.items()}
