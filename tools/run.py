"""Run a command in the project's own environment, making that environment first where it is missing or out of date.

    python3 tools/run.py vlmprune bench
    python3 tools/run.py pytest

Needs nothing but Python 3.11 or newer. The environment is `.venv` in the checkout, with the versions that
constraints.txt names. A set-up that was interrupted starts afresh; one that is complete is found complete at once.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
BIN = VENV / ("Scripts" if os.name == "nt" else "bin")
PYTHON = BIN / ("python.exe" if os.name == "nt" else "python")
MARK = VENV / "vlmprune.json"
OLDEST = (3, 11)


def main(command: list[str]) -> int:
    if sys.version_info < OLDEST:
        return complain(f"vlmprune needs Python 3.11 or newer; this is {sys.version.split()[0]}.")
    if not command:
        return complain("Say what to run: python3 tools/run.py vlmprune bench, or python3 tools/run.py pytest.")
    try:
        with alone() as lock:
            if foreign():
                return complain(f"{VENV} is not an environment of this tool and holds no Python: move it away.")
            set_up(lock)
    except KeyboardInterrupt:
        complain("Interrupted: the same command starts the set-up afresh.")
        return 130
    except subprocess.CalledProcessError as error:
        return complain(f"The set-up failed at `{' '.join(map(str, error.cmd))}`; its own message is above.")
    return run(command)


def complain(sentence: str) -> int:
    print(sentence, file=sys.stderr)
    return 2


@contextmanager
def alone() -> Iterator[tuple[int, ...]]:
    """Held by one set-up at a time. The steps inherit what is yielded: one that outlives a killed set-up holds on."""
    if os.name == "nt":
        yield ()
        return
    import fcntl

    handle = os.open(ROOT, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("Waiting for another set-up of this checkout to end ...", file=sys.stderr, flush=True)
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield (handle,)
    finally:
        os.close(handle)


def set_up(lock: tuple[int, ...]) -> None:
    """Make `.venv` what it should be; at once when it is."""
    wanted, found = wanted_state(), found_state()
    works = PYTHON.exists()
    if works and found == wanted:
        return
    print(f"Setting up {VENV} (once; some minutes, most of them for torch) ...", file=sys.stderr, flush=True)
    # An environment without a mark is the user's own: install into it. One of ours that was left unfinished, moved, or
    # made by another Python is made anew.
    ours_and_stale = found is not None and any(found.get(key) != wanted[key] for key in ("place", "python"))
    if not works or ours_and_stale:
        VENV.mkdir(exist_ok=True)
        MARK.write_text("{}", encoding="utf-8")
        clear()
        call(lock, getattr(sys, "_base_executable", sys.executable), "-m", "venv", str(VENV))
    elif found is not None:
        MARK.write_text("{}", encoding="utf-8")
    # The variables hold the build of the package itself to the same versions, whichever of them this pip reads.
    held = {"PIP_CONSTRAINT": "constraints.txt", "PIP_BUILD_CONSTRAINT": "constraints.txt"}
    call(lock, str(PYTHON), "-m", "pip", "install", "--disable-pip-version-check", "-e", ".[dev]", **held)
    MARK.write_text(json.dumps(wanted), encoding="utf-8")


def foreign() -> bool:
    """Whether there is a `.venv` that this tool neither made nor can install into."""
    return VENV.exists() and found_state() is None and not PYTHON.exists() and any(VENV.iterdir())


def clear() -> None:
    """Empty `.venv` but for its mark, so that a set-up killed in between still knows that it is ours."""
    for child in VENV.iterdir():
        if child.is_dir() and not child.is_symlink():
            shutil.rmtree(child, ignore_errors=True)
        elif child != MARK:
            child.unlink()


def wanted_state() -> dict[str, str]:
    """What `.venv` has to be made from."""
    inputs = b"".join((ROOT / name).read_bytes() for name in ("pyproject.toml", "constraints.txt"))
    return {"place": str(VENV), "python": sys.version.split()[0], "inputs": hashlib.sha256(inputs).hexdigest()}


def found_state() -> dict[str, str] | None:
    """What it was made from: {} when that was not finished, None without a mark."""
    try:
        return json.loads(MARK.read_text(encoding="utf-8"))
    except OSError:
        return None
    except ValueError:  # killed while writing it
        return {}


def call(lock: tuple[int, ...], *command: str, **environment: str) -> None:
    """Run a step of the set-up; its output goes to stderr, which leaves stdout to the command asked for."""
    environment = {**os.environ, **environment}
    subprocess.run(command, cwd=ROOT, env=environment, stdout=sys.stderr, check=True, pass_fds=lock)


def run(command: list[str]) -> int:
    """Become the command, with the environment's programs first on the path."""
    os.environ["VIRTUAL_ENV"] = str(VENV)
    os.environ["PATH"] = str(BIN) + os.pathsep + os.environ.get("PATH", "")
    os.environ.pop("PYTHONHOME", None)
    program = shutil.which(command[0])
    if program is None:
        return complain(f"There is no program {command[0]!r} in {BIN}.")
    if os.name == "nt":
        return subprocess.run([program, *command[1:]], check=False).returncode
    os.execv(program, [program, *command[1:]])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
