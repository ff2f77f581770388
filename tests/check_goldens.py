"""Run every golden case under a folder against the library: `python tests/check_goldens.py DIR`.

DIR holds METHOD/caseN.npz with METHOD/caseN.json. Methods without a runner are listed apart. A case that shows a
mistake which the library does not repeat is skipped, with the reason. The last line is `N passed, M failed`, or
`N passed, M failed, K skipped` when some were; the exit code is 0 when none failed, 1 when some did, 2 when there is
nothing to run.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from itertools import groupby
from pathlib import Path

import torch
from golden_runners import Case, Failed, Skipped, runner_of
from golden_runners.case import find, run

PASSED, FAILED, SKIPPED, APART = "passed", "failed", "skipped", "no runner"


def check(path: Path) -> tuple[str, str]:
    """What became of a case, and the reason; of a case without a runner, the group under which it is listed."""
    try:
        case = Case(path)
        runner = runner_of(case)
        if runner is None:
            return APART, case.group
        run(case, runner)
        for note in case.notes:
            print(f"note {case}: {note}")
    except Skipped as skipped:
        return SKIPPED, str(skipped)
    except Failed as failure:
        return FAILED, str(failure)
    except Exception as error:  # a crash is a failed case, and the others still run
        return FAILED, f"{type(error).__name__}: {error}"
    return PASSED, ""


def check_method(method: str, paths: list[Path], apart: Counter[str]) -> Counter[str]:
    """Run the cases of one folder, print what is to be said of them, and count what became of them."""
    started, became = time.perf_counter(), Counter[str]()
    for path in paths:
        status, reason = check(path)
        became[status] += 1
        if status == APART:
            apart[reason] += 1
        elif status != PASSED:
            print(f"{'FAIL' if status == FAILED else 'skip'} {method}/{path.stem}: {reason}", flush=True)
    run_here = became.total() - became[APART]
    if run_here:
        skipped = f", {became[SKIPPED]} skipped" if became[SKIPPED] else ""
        seconds = time.perf_counter() - started
        print(f"{method}: {became[PASSED]} of {run_here} passed{skipped} ({seconds:.1f} s)", flush=True)
    return became


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Compare the library with golden cases of the authors' code.")
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder with METHOD/caseN.npz and METHOD/caseN.json")
    parser.add_argument("--methods", metavar="A,B", help="only these folders; by default all")
    parsed = parser.parse_args(arguments)
    root: Path = parsed.folder
    paths = find(root) if root.is_dir() else []
    if parsed.methods is not None:
        wanted = set(parsed.methods.split(","))
        if missing := sorted(wanted - {path.parent.name for path in paths}):
            print(f"{root} holds no golden cases of {', '.join(missing)}.", file=sys.stderr)
            return 2
        paths = [path for path in paths if path.parent.name in wanted]
    if not paths:
        print(f"{root} holds no golden cases (METHOD/caseN.json with METHOD/caseN.npz).", file=sys.stderr)
        return 2
    torch.set_num_threads(1)  # sums in one order, as when the goldens were made
    became, apart = Counter[str](), Counter[str]()
    for method, group in groupby(paths, key=lambda path: path.parent.name):
        became += check_method(method, list(group), apart)
    if apart:
        print("no runner: " + ", ".join(f"{name} ({count})" for name, count in sorted(apart.items())))
    skipped = f", {became[SKIPPED]} skipped" if became[SKIPPED] else ""
    print(f"{became[PASSED]} passed, {became[FAILED]} failed{skipped}")
    return 1 if became[FAILED] else 0


if __name__ == "__main__":
    sys.exit(main())
