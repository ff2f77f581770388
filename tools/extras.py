"""Run the tests of an optional part in an environment of its own: Ray, lmms-eval, Triton's interpreter, the web pages.

    python3 tools/extras.py ray
    python3 tools/extras.py lmms
    python3 tools/extras.py triton
    python3 tools/extras.py demo      in headless Chromium

They stand beside those of tools/window.py. Where what they need cannot be installed, the last line says so, and the
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
TESTS = {
    "ray": ("tests/test_engines_cluster.py",),
    "lmms": ("tests/test_engines_lmms.py",),
    "triton": ("tests/test_kernels.py",),
    "demo": ("tests/test_demo_page.py", "tests/test_report_operated.py"),
}
FOR_TESTS = {
    "triton": ("triton",),  # it comes with torch for CUDA, and is of no use to others but for tests
    "demo": ("playwright",),  # drives the system's Chromium
}
OTHER_PINS = {"demo": ("pillow", "tomlkit")}  # gradio refuses the versions in constraints.txt


def environment(checkout: Path, name: str) -> Environment:
    """That of an extra: the project's pinned libraries, and those of the extra as new as they come.

    lmms-eval asks for other versions than those pinned; torch alone is held, whose newest has gigabytes of CUDA.
    """
    project = tomllib.loads((checkout / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    windows, others = declared_windows(checkout)
    extra = [*project["optional-dependencies"].get(name, ()), *FOR_TESTS.get(name, ())]
    own = [one for one in extra if not one.startswith(project["name"] + "[")]
    pinned = (checkout / "constraints.txt").read_text(encoding="utf-8").splitlines()
    loose = OTHER_PINS.get(name, ())
    if name == "lmms":
        pinned = [line for line in pinned if line.startswith("torch==")]
    constraints = "\n".join(line for line in pinned if line.partition("==")[0] not in loose)
    return shared(checkout, name, [*map(str, windows.values()), *others, *own], constraints)


def test(environment: Environment, name: str) -> int:
    """Run its tests there, the slow ones too; returns pytest's exit code."""
    try:
        with kept_ready(environment) as held:
            variables = activated(environment, os.environ) | {"PYTHONPATH": str(environment.checkout / "src")}
            if name == "lmms":
                drop = [str(environment.python), "-m", "pip", "uninstall", "-q", "-y", "torchvision"]
                subprocess.run(drop, check=True, pass_fds=held)  # pip's is not built for every torch, and not needed
            pytest = [str(environment.python), "-m", "pytest", "-m", "slow or not slow", "-p", "no:cacheprovider"]
            command = [*pytest, *TESTS[name]]
            return subprocess.run(command, cwd=environment.checkout, env=variables, pass_fds=held).returncode
    except subprocess.CalledProcessError:
        print(f"Not tested: what the extra {name} needs cannot be installed here; pip's own message is above.")
        return 0


def main(arguments: list[str]) -> int:
    if sys.version_info < OLDEST:
        return complain(f"vlmprune needs Python 3.11 or newer; this is {sys.version.split()[0]}.")
    if len(arguments) != 1 or arguments[0] not in TESTS:
        return complain(f"Say what to test: python3 tools/extras.py {', or '.join(TESTS)}.")
    try:
        return test(environment(ROOT, arguments[0]), arguments[0])
    except KeyboardInterrupt:
        complain("Interrupted: a set-up that was not finished starts afresh.")
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
