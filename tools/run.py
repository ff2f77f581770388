"""Run a command in the project's own environment, making that environment first where it is missing or out of date.

    python3 tools/run.py vlmprune bench
    python3 tools/run.py pytest

Needs nothing but Python 3.11 or newer. The environment is `.venv` in the checkout, with the versions that
constraints.txt names. A set-up that was interrupted starts afresh; one that is complete is found complete at once.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from environments import OLDEST, Environment, activated, alone, complain, failed, foreign, set_up

ROOT = Path(__file__).resolve().parent.parent


def pinned(checkout: Path) -> Environment:
    """The environment of a checkout."""
    return Environment(
        place=checkout / ".venv",
        checkout=checkout,
        requirements=("-e", ".[dev]"),
        constraints=(checkout / "constraints.txt").read_text(encoding="utf-8"),
        lock=checkout,
        sources=("pyproject.toml",),
    )


def main(command: list[str]) -> int:
    if sys.version_info < OLDEST:
        return complain(f"vlmprune needs Python 3.11 or newer; this is {sys.version.split()[0]}.")
    if not command:
        return complain("Say what to run: python3 tools/run.py vlmprune bench, or python3 tools/run.py pytest.")
    environment = pinned(ROOT)
    try:
        with alone(environment) as held:
            if foreign(environment):
                place = environment.place
                return complain(f"{place} is not an environment of this tool and holds no Python: move it away.")
            set_up(environment, held)
    except KeyboardInterrupt:
        complain("Interrupted: the same command starts the set-up afresh.")
        return 130
    except subprocess.CalledProcessError as error:
        return complain(failed(error))
    return run(environment, command)


def run(environment: Environment, command: list[str]) -> int:
    """Become the command."""
    variables = activated(environment, os.environ)
    program = shutil.which(command[0], path=variables["PATH"])
    if program is None:
        return complain(f"There is no program {command[0]!r} in {environment.programs}.")
    if os.name == "nt":
        return subprocess.run([program, *command[1:]], env=variables, check=False).returncode
    os.execve(program, [program, *command[1:]], variables)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
