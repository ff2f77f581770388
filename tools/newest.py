"""Can the window be widened? Installs the newest release beyond it and runs the tests of the window with that.

    python3 tools/newest.py                     the newest transformers
    python3 tools/newest.py --package torch     another library that has a window
    python3 tools/newest.py 5.25.0              this version

The last line says it in a sentence; exit code 0 when the release passes or there is none, 1 when it does not pass.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path

from environments import OLDEST, complain, failed
from window import Window, declared, shared, test

ROOT = Path(__file__).resolve().parent.parent


def numbers(version: str) -> tuple[int, ...]:
    """The release numbers of a version; what stands behind them (+cpu, .post1) does not count."""
    found = re.match(r"\d+(\.\d+)*", version)
    return tuple(map(int, found[0].split("."))) if found else ()


def released(name: str) -> list[str]:
    """Versions that pip can install, without pre-releases."""
    command = [sys.executable, "-m", "pip", "index", "versions", name, "--disable-pip-version-check"]
    answer = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    line = re.search(r"^Available versions: (.+)$", answer, re.MULTILINE)
    return line[1].split(", ") if line else []


def widened(window: Window, version: str) -> Window:
    """The window up to the minor release behind this version."""
    major, minor = numbers(version)[:2]
    return Window(window.name, window.oldest, f"{major}.{minor + 1}")


def verdict(window: Window, version: str, passes: bool) -> str:
    """The sentence."""
    found = f"{window.name} {version}"
    if not passes:
        return f"{found} does not pass the tests of the window: it stays {window}."
    if numbers(version) < numbers(window.beyond):
        return f"{found} passes the tests of the window, in which it lies already: {window}."
    wider = widened(window, version)
    return f"{found} passes the tests of the window, which can be widened in pyproject.toml: {wider}."


def main(arguments: list[str]) -> int:
    if sys.version_info < OLDEST:
        return complain(f"vlmprune needs Python 3.11 or newer; this is {sys.version.split()[0]}.")
    windows, others = declared(ROOT)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("version", nargs="?", help="instead of the newest release")
    parser.add_argument("--package", choices=windows, default="transformers", help="default: transformers")
    asked = parser.parse_args(arguments)
    window = windows[asked.package]
    if asked.version and not re.fullmatch(r"\d+\.\d+.*", asked.version):
        return complain(f"{asked.version!r} is not a version: python3 tools/newest.py 5.25.0.")
    try:
        version = asked.version or max(released(window.name), key=numbers)
    except (subprocess.CalledProcessError, ValueError):
        return complain(f"pip does not say which versions of {window.name} there are: is there a network?")
    if not asked.version and numbers(version) < numbers(window.beyond):
        print(f"{window.name} {version} is the newest release and lies in the window: {window}.")
        return 0
    chosen = [f"{name}=={version}" if name == window.name else str(other) for name, other in windows.items()]
    try:  # without constraints: what a new release brings along is what a user gets today
        passes = test(shared(ROOT, "beyond", [*chosen, *others], constraints=""), []) == 0
    except subprocess.CalledProcessError as error:
        complain(failed(error))
        passes = False
    print(verdict(window, version, passes))
    return 0 if passes else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
