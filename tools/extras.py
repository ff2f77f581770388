"""Run what needs an environment of its own: the tests of an engine, the notebooks, or the documentation site.

    python3 tools/extras.py ray
    python3 tools/extras.py lmms
    python3 tools/extras.py triton       with Triton's interpreter
    python3 tools/extras.py notebooks    runs those of examples/notebooks
    python3 tools/extras.py site         builds it strictly (tools/site_pages.py)

The environments stand beside those of tools/window.py. Where one cannot be installed, the last line says so, and the
exit code is 0: nothing was tested, and nothing is wrong.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

from environments import OLDEST, Environment, activated, complain, kept_ready
from window import declared as declared_windows
from window import shared

ROOT = Path(__file__).resolve().parent.parent
PYTEST = ["-m", "pytest", "-m", "slow or not slow", "-p", "no:cacheprovider"]
COMMANDS = {  # of the environment's Python
    "ray": [*PYTEST, "tests/test_engines_cluster.py"],
    "lmms": [*PYTEST, "tests/test_engines_lmms.py"],
    "triton": [*PYTEST, "tests/test_kernels.py"],
    "notebooks": [*PYTEST, "tests/test_notebooks.py"],
    "site": ["tools/site_pages.py"],
}
NO_EXTRA = {
    "triton": ["triton"],  # it comes with torch for CUDA, and is of no use to others but for tests
    "notebooks": ["nbclient", "ipykernel"],  # vlmprune needs neither: users bring the notebook that they like
}
# Docstrings are read, not imported, so neither torch nor vlmprune is needed. Zensical is young and changes often, so
# its version is fixed; ruff breaks the lines of signatures.
ALONE = {"site": ["zensical==0.0.73", "mkdocstrings==1.0.8", "mkdocstrings-python==2.0.11", "ruff"]}


def environment(checkout: Path, name: str) -> Environment:
    """That of an engine: the project's pinned libraries, and those of the extra as new as they come.

    lmms-eval asks for other versions than those pinned; torch alone is held, whose newest has gigabytes of CUDA.
    """
    if name in ALONE:
        return shared(checkout, name, ALONE[name], "")
    project = tomllib.loads((checkout / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    windows, others = declared_windows(checkout)
    extra = NO_EXTRA.get(name) or project["optional-dependencies"][name]
    own = [one for one in extra if not one.startswith(project["name"] + "[")]
    pinned = (checkout / "constraints.txt").read_text(encoding="utf-8")
    constraints = pinned
    if name == "lmms":
        constraints = next(line for line in pinned.splitlines() if line.startswith("torch=="))
    return shared(checkout, name, [*map(str, windows.values()), *others, *own], constraints)


def run(environment: Environment, name: str) -> int:
    """Run the command there, of tests the slow ones too; returns its exit code."""
    try:
        with kept_ready(environment) as held:
            variables = activated(environment, os.environ) | {"PYTHONPATH": str(environment.checkout / "src")}
            if name == "lmms":
                drop = [str(environment.python), "-m", "pip", "uninstall", "-q", "-y", "torchvision"]
                subprocess.run(drop, check=True, pass_fds=held)  # pip's is not built for every torch, and not needed
            command = [str(environment.python), *COMMANDS[name]]
            return subprocess.run(command, cwd=environment.checkout, env=variables, pass_fds=held).returncode
    except subprocess.CalledProcessError:
        print(f"Not tested: what {name} needs cannot be installed here; pip's own message is above.")
        return 0


def main(arguments: list[str]) -> int:
    if sys.version_info < OLDEST:
        return complain(f"vlmprune needs Python 3.11 or newer; this is {sys.version.split()[0]}.")
    if len(arguments) != 1 or arguments[0] not in COMMANDS:
        return complain(f"Say what to run: python3 tools/extras.py {', or '.join(COMMANDS)}.")
    try:
        return run(environment(ROOT, arguments[0]), arguments[0])
    except KeyboardInterrupt:
        complain("Interrupted: a set-up that was not finished starts afresh.")
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
