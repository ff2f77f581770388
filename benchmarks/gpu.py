"""Everything that is to be measured on a GPU, the most important first, within nine minutes.

    python benchmarks/gpu.py
    python benchmarks/gpu.py --parts prefill,matrix --minutes 5
    python benchmarks/gpu.py --parts papers --minutes 10        # the timing tables of papers
    python benchmarks/gpu.py --dry-run --out /tmp/figures       # the same on a CPU, with tiny models and two turns

Each part is a script of this folder, or `vlmprune bench --speed`, and writes its figures row by row to a file
`gpu-PART.json` in the folder `--out`; the timing tables go to `speed/` there. A part that takes longer than its limit,
or than what is left of the time, is stopped, and the next one begins. What failed or was stopped is said at the end,
with exit status 1. Models have random weights of true shapes, in bfloat16; the matrix says itself what it takes.
"""

from __future__ import annotations

import argparse
import gc
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import decoding
import gpu_matrix
import memory
import prefill
import scaling
import scoring
import selecting
import torch

from vlmprune import cli

RESULTS = Path(__file__).parent / "results"
TINY = "llava-1.5-7b:layers=3,encoder_layers=3,shrink=32"
TINY_QWEN = "qwen3-vl-8b:layers=3,encoder_layers=3,shrink=16"


@dataclass(frozen=True)
class Part:
    """One call of a script.

    Attributes:
        limit: seconds that it may take on a GPU.
        run: takes arguments, and returns an exit status or nothing.
        given, dry: its arguments on a GPU and in a dry run.
        table: whether it writes a timing table instead of a file of its own.
    """

    name: str
    limit: int
    run: Callable[[list[str]], Any]
    given: str
    dry: str
    table: bool = False

    def arguments(self, out: Path, dry: bool) -> list[str]:
        where = ["--out", str(out) if self.table else str(out / f"gpu-{self.name}.json")]
        if self.run is gpu_matrix.main:
            return [*(self.dry if dry else self.given).split(), *where, "--force"]
        device = ["--device", "cpu" if dry else "cuda"]
        return [*(self.dry if dry else self.given).split(), *device, *where]


def speed(arguments: list[str]) -> Any:
    return cli.main(["bench", "--speed", "--force", *arguments])


PARTS = [
    Part("prefill", 120, prefill.main, "--model llava-1.5-7b --repeats 10",
         f"--model {TINY} --methods random,fastv --keep 0.111 --repeats 2"),
    Part("prefill-6400", 70, prefill.main,
         "--model qwen3-vl-8b --visual-tokens 6400 --methods fastv,dart,divprune,hilo,hiprune --keep 0.222 --repeats 4",
         f"--model {TINY_QWEN} --visual-tokens 16 --methods fastv --keep 0.25 --repeats 2"),
    Part("scoring", 40, scoring.main, "--model llava-1.5-7b --tower llava-1.5-7b --repeats 10",
         f"--model {TINY} --tower {TINY} --tokens 64 --repeats 2"),
    Part("selecting", 60, selecting.main, "--repeats 5", "--repeats 2 --largest 100"),
    Part("decoding", 60, decoding.main, "--random llava-1.5-7b --repeats 4",
         f"--random {TINY} --methods fastv --repeats 2 --steps 2"),
    Part("matrix", 150, gpu_matrix.main, "", "--models llava --checks identity --new-tokens 2"),
    Part("scaling", 90, scaling.main, "--model qwen3-vl-8b --visual-tokens 256,1024,4096,16384 --batch 8,64",
         f"--model {TINY_QWEN} --visual-tokens 16 --batch 2 --methods divprune"),
    Part("memory", 40, memory.main, "--model qwen3-vl-8b --visual-tokens 4096 --keep 0.111",
         f"--model {TINY} --methods divprune --keep 0.111"),
]  # fmt: skip
_FEW = "--repeats 1 --new-tokens 2"
PAPERS = [
    Part("hilo-table8", 240, speed, "--preset hilo-table8 --repeats 5",
         f"--preset hilo-table8 --random {TINY_QWEN} --visual-tokens 16 {_FEW}", table=True),
    Part("uniprunebench-table4", 90, speed, "--preset uniprunebench-table4 --repeats 5",
         f"--preset uniprunebench-table4 --random internvl3-8b:layers=3,encoder_layers=2,shrink=14 --visual-tokens 256 "
         f"{_FEW}", table=True),
    Part("hiprune-table6", 120, speed, "--preset hiprune-table6 --repeats 5",
         "--preset hiprune-table6 --random llava-next-7b:layers=3,encoder_layers=3,shrink=16 --visual-tokens 1752 "
         f"{_FEW}",
         table=True),
    Part("pays", 150, speed, "--random qwen3-vl-8b --visual-tokens 256,1024,4096 --batch-size 1,8 --new-tokens 1,16 "
         "--methods downsample,divprune,fastv@2,hilo --keep 0.111 --repeats 2",
         f"--random {TINY_QWEN} --visual-tokens 16,64 --methods divprune --keep 0.111 {_FEW}", table=True),
]  # fmt: skip


class OutOfTime(BaseException):
    """Raised in the middle of a part; not an Exception, which parts catch and record."""


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Raise OutOfTime in the block after so many seconds."""

    def stop(*_: Any) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def run(part: Part, out: Path, dry: bool, seconds: float) -> str:
    """Run a part; "done", or what came between."""
    try:
        with at_most(seconds):
            status = part.run(part.arguments(out, dry))
    except OutOfTime:
        return f"stopped after {seconds:.0f} s"
    except SystemExit as end:
        status = end.code
    except Exception:
        traceback.print_exc()
        return "failed"
    finally:
        gc.collect()
        torch.cuda.empty_cache()
    return "done" if not status else f"ended with status {status}"


def main(arguments: Sequence[str] | None = None) -> int:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = ", ".join(part.name for part in [*PARTS, *PAPERS])
    made.add_argument("--parts", help=f"comma-separated: {names}; or papers, for the last {len(PAPERS)}")
    made.add_argument("--minutes", type=float, default=9.0, help="in all (default: 9)")
    made.add_argument("--out", type=Path, default=RESULTS, help="folder of the figures")
    made.add_argument("--dry-run", action="store_true", help="tiny models on a CPU")
    asked = made.parse_args(arguments)
    known = {part.name: part for part in [*PARTS, *PAPERS]}
    wanted = [part.name for part in PARTS] if asked.parts is None else asked.parts.split(",")
    wanted = [name for one in wanted for name in ([part.name for part in PAPERS] if one == "papers" else [one])]
    for name in wanted:
        if name not in known:
            made.error(f"there is no part {name!r}: choose from {names}, or papers")
    if not asked.dry_run and not torch.cuda.is_available():
        made.error("there is no GPU that torch can use: add --dry-run to try the parts on a CPU")
    asked.out.mkdir(parents=True, exist_ok=True)
    end, ends = time.monotonic() + 60 * asked.minutes, {}
    for name in wanted:
        start, left = time.monotonic(), end - time.monotonic()
        print(f"\n== {name}", flush=True)
        ends[name] = "not begun: no time left" if left < 1 else run(
            known[name], asked.out, asked.dry_run, min(left, known[name].limit)
        )  # fmt: skip
        print(f"== {name}: {ends[name]} ({time.monotonic() - start:.0f} s)", flush=True)
    print("\n" + "\n".join(f"{name}: {how}" for name, how in ends.items()))
    return int(any(how != "done" for how in ends.values()))


if __name__ == "__main__":
    sys.exit(main())
