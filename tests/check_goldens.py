"""Run every golden case under a folder against the library: `python tests/check_goldens.py DIR`.

DIR holds METHOD/caseN.npz with METHOD/caseN.json. Methods without a runner are listed apart. The last line is
`N passed, M failed`; the exit code is 0 when none failed, 1 when some did, 2 when there is nothing to run.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from itertools import groupby
from pathlib import Path

import torch
from golden_runners import Case, Failed, runner_of
from golden_runners.case import find, run


def check(path: Path, apart: Counter[str]) -> str | None:
    """None when the case passes or has no runner (then it is counted in `apart`), else the reason."""
    try:
        case = Case(path)
        runner = runner_of(case)
        if runner is None:
            apart[case.group] += 1
        else:
            run(case, runner)
            for note in case.notes:
                print(f"note {case}: {note}")
    except Failed as failure:
        return str(failure)
    except Exception as error:  # a crash is a failed case, and the others still run
        return f"{type(error).__name__}: {error}"
    return None


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Compare the library with golden cases of the authors' code.")
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder with METHOD/caseN.npz and METHOD/caseN.json")
    root = parser.parse_args(arguments).folder
    paths = find(root) if root.is_dir() else []
    if not paths:
        print(f"{root} holds no golden cases (METHOD/caseN.json with METHOD/caseN.npz).", file=sys.stderr)
        return 2
    torch.set_num_threads(1)  # sums in one order, as when the goldens were made
    passed = failed = 0
    apart: Counter[str] = Counter()
    for method, group in groupby(paths, key=lambda path: path.parent.name):
        started, cases, wrong, aside = time.perf_counter(), list(group), 0, apart.total()
        for path in cases:
            reason = check(path, apart)
            if reason is not None:
                wrong += 1
                print(f"FAIL {method}/{path.stem}: {reason}", flush=True)
        run_here = len(cases) - (apart.total() - aside)
        if run_here:
            seconds = time.perf_counter() - started
            print(f"{method}: {run_here - wrong} of {run_here} passed ({seconds:.1f} s)", flush=True)
        passed += run_here - wrong
        failed += wrong
    if apart:
        print("no runner: " + ", ".join(f"{name} ({count})" for name, count in sorted(apart.items())))
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
