"""Run the tests of the declared window with the oldest or the newest libraries that pyproject.toml allows.

    python3 tools/window.py oldest              the selection of tests/window.py
    python3 tools/window.py newest -k gemma3    with options for pytest

The environments stand outside the checkout, so that all checkouts share them: in $VLMPRUNE_ENVIRONMENTS, by default
~/.cache/vlmprune/environments. They hold what vlmprune depends on, and not vlmprune, which is this checkout's. Needs
nothing but Python 3.11 or newer.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

from environments import OLDEST, Environment, activated, complain, failed, kept_ready

ROOT = Path(__file__).resolve().parent.parent
SIDES = ("oldest", "newest")
WINDOWED = re.compile(r"([\w.-]+)>=([\w.]+),<([\w.]+)")
NAME = re.compile(r"[\w.-]+")
CUDA = "# only with the CUDA build of torch"  # in constraints.txt: what another version of torch wants otherwise


@dataclass(frozen=True)
class Window:
    """The declared range of a library.

    Attributes:
        name: of the library.
        oldest: the oldest version that is tested.
        beyond: the first version that nobody has tried.
    """

    name: str
    oldest: str
    beyond: str

    def __str__(self) -> str:
        return f"{self.name}>={self.oldest},<{self.beyond}"


def declared(checkout: Path) -> tuple[dict[str, Window], list[str]]:
    """(windows by library, all other requirements) of pyproject.toml, with those of the extras `bench` and `dev`."""
    project = tomllib.loads((checkout / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    windows, others = {}, []
    for requirement in [*project["dependencies"], *extras["bench"], *extras["dev"]]:
        if found := WINDOWED.fullmatch(requirement):
            windows[found[1]] = Window(*found.groups())
        elif not requirement.startswith(project["name"] + "["):
            others.append(requirement)
    return windows, others


def pins(checkout: Path, windows: dict[str, Window]) -> str:
    """constraints.txt without the libraries that have a window, and without what comes with torch for CUDA."""
    lines = (checkout / "constraints.txt").read_text(encoding="utf-8").partition(CUDA)[0].splitlines()
    return "\n".join(line for line in lines if line.partition("==")[0] not in windows)


def home() -> Path:
    """Where the environments stand."""
    set_to = os.environ.get("VLMPRUNE_ENVIRONMENTS")
    return Path(set_to).expanduser().resolve() if set_to else Path.home() / ".cache" / "vlmprune" / "environments"


def environment(checkout: Path, side: str) -> Environment:
    """That of the oldest or the newest libraries of a checkout's window."""
    windows, others = declared(checkout)
    chosen = [f"{w.name}=={w.oldest}" if side == "oldest" else str(w) for w in windows.values()]
    return shared(checkout, side, [*chosen, *others], pins(checkout, windows))


def shared(checkout: Path, name: str, requirements: list[str], constraints: str) -> Environment:
    """An environment under `home()`. Installed into again, its libraries become the newest of their ranges."""
    place = home() / name
    lock = place.with_name(f"{name}.lock")
    return Environment(place, checkout, ("--upgrade", *requirements), constraints, lock)


def test(environment: Environment, options: list[str]) -> int:
    """Run the selection there; returns pytest's exit code."""
    with kept_ready(environment) as held:
        variables = activated(environment, os.environ)
        variables["PYTHONPATH"] = str(environment.checkout / "src")
        python, names = str(environment.python), [*declared(environment.checkout)[0]]
        show = f"from importlib.metadata import version; print(*(f'{{name}} {{version(name)}}' for name in {names}))"
        subprocess.run([python, "-c", show], check=True)
        # Without pytest's cache, which would mix with that of the pinned environment.
        pytest = [python, "-m", "pytest", "-m", "window", "-p", "no:cacheprovider", "-n", "2", *options]
        return subprocess.run(pytest, cwd=environment.checkout, env=variables, check=False, pass_fds=held).returncode


def main(arguments: list[str]) -> int:
    if sys.version_info < OLDEST:
        return complain(f"vlmprune needs Python 3.11 or newer; this is {sys.version.split()[0]}.")
    if not arguments or arguments[0] not in SIDES:
        return complain("Say which end of the window to test: python3 tools/window.py oldest, or newest.")
    try:
        return test(environment(ROOT, arguments[0]), arguments[1:])
    except KeyboardInterrupt:
        complain("Interrupted: a set-up that was not finished starts afresh.")
        return 130
    except subprocess.CalledProcessError as error:
        return complain(failed(error))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
