"""Environments of Python that are made once and kept: made anew when out of date, afresh when interrupted.

Needs nothing but Python 3.11 or newer: this is what stands before anything is installed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

OLDEST = (3, 11)
Held = tuple[int, ...]  # file descriptors of a lock, to be inherited by what works under it


@dataclass(frozen=True)
class Environment:
    """What an environment is made from.

    Attributes:
        place: its folder.
        checkout: where pip runs.
        requirements: what pip is asked to install, options included.
        constraints: text of a constraints file, which also holds the build of packages.
        lock: what is locked while it is made: a file, made where missing, or a folder.
        sources: files of the checkout that decide what the requirements mean.
    """

    place: Path
    checkout: Path
    requirements: tuple[str, ...]
    constraints: str
    lock: Path
    sources: tuple[str, ...] = ()

    @property
    def programs(self) -> Path:
        return self.place / ("Scripts" if os.name == "nt" else "bin")

    @property
    def python(self) -> Path:
        return self.programs / ("python.exe" if os.name == "nt" else "python")

    @property
    def mark(self) -> Path:
        """Says what the environment was made from; written last."""
        return self.place / "vlmprune.json"

    def wanted(self) -> dict[str, str]:
        """What the mark has to say."""
        inputs = [*self.requirements, self.constraints]
        inputs += [(self.checkout / name).read_text(encoding="utf-8") for name in self.sources]
        digest = hashlib.sha256(json.dumps(inputs).encode()).hexdigest()
        return {"place": str(self.place), "python": sys.version.split()[0], "inputs": digest}

    def found(self) -> dict[str, str] | None:
        """What the mark says: {} when the environment was not finished, None without a mark."""
        try:
            return json.loads(self.mark.read_text(encoding="utf-8"))
        except OSError:
            return None
        except ValueError:  # killed while writing it
            return {}

    def ready(self) -> bool:
        return self.python.exists() and self.found() == self.wanted()


def complain(sentence: str) -> int:
    """Say what is wrong on stderr; returns the exit code for it."""
    print(sentence, file=sys.stderr)
    return 2


@contextmanager
def alone(environment: Environment) -> Iterator[Held]:
    """Held by one set-up at a time. The steps inherit what is yielded: one that outlives a killed set-up holds on."""
    with _opened(environment.lock) as held:
        _lock(held, shared=False, waiting="Waiting for another set-up of this environment to end ...")
        yield held


@contextmanager
def kept_ready(environment: Environment) -> Iterator[Held]:
    """For an environment that checkouts share: made where needed, and not remade by another one until the block ends.

    Whatever is started inside has to inherit what is yielded.
    """
    environment.lock.parent.mkdir(parents=True, exist_ok=True)
    environment.lock.touch()
    with _opened(environment.lock) as held:
        while True:  # between the two locks another checkout may remake it for itself
            _lock(held, shared=True, waiting=f"Waiting for the set-up of {environment.place} to end ...")
            if environment.ready():
                break
            _lock(held, shared=False, waiting=f"Waiting for a run in {environment.place} to end ...")
            set_up(environment, held)
        yield held


@contextmanager
def _opened(lock: Path) -> Iterator[Held]:
    if os.name == "nt":
        yield ()
        return
    handle = os.open(lock, os.O_RDONLY)
    try:
        yield (handle,)
    finally:
        os.close(handle)


def _lock(held: Held, shared: bool, waiting: str) -> None:
    if not held:
        return
    import fcntl

    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        fcntl.flock(held[0], kind | fcntl.LOCK_NB)
    except BlockingIOError:
        print(waiting, file=sys.stderr, flush=True)
        fcntl.flock(held[0], kind)


def set_up(environment: Environment, held: Held) -> None:
    """Make the environment what it should be; at once when it is."""
    if environment.ready():
        return
    place, mark = environment.place, environment.mark
    wanted, found = environment.wanted(), environment.found()
    print(f"Setting up {place} (once; some minutes, most of them for torch) ...", file=sys.stderr, flush=True)
    # An environment without a mark is the user's own: install into it. One of ours that was left unfinished, moved, or
    # made by another Python is made anew.
    ours_and_stale = found is not None and any(found.get(key) != wanted[key] for key in ("place", "python"))
    if not environment.python.exists() or ours_and_stale:
        place.mkdir(parents=True, exist_ok=True)
        mark.write_text("{}", encoding="utf-8")
        clear(environment)
        call(environment, held, getattr(sys, "_base_executable", sys.executable), "-m", "venv", str(place))
    elif found is not None:
        mark.write_text("{}", encoding="utf-8")
    constraints = place / "constraints.txt"
    constraints.write_text(environment.constraints, encoding="utf-8")
    pip = [str(environment.python), "-m", "pip", "install", "--disable-pip-version-check"]
    call(environment, held, *pip, *environment.requirements, **constrained_by(constraints))
    mark.write_text(json.dumps(wanted), encoding="utf-8")


def foreign(environment: Environment) -> bool:
    """Whether its folder is somebody's own: neither made here, nor an environment that can be installed into."""
    place = environment.place
    return place.exists() and environment.found() is None and not environment.python.exists() and any(place.iterdir())


def clear(environment: Environment) -> None:
    """Empty its folder but for the mark, so that a set-up killed in between still knows that it is ours."""
    for child in environment.place.iterdir():
        if child.is_dir() and not child.is_symlink():
            shutil.rmtree(child, ignore_errors=True)
        elif child != environment.mark:
            child.unlink()


def constrained_by(constraints: Path) -> dict[str, str]:
    """Variables that hold pip to a file of constraints, and to no other; also in a build, whichever it reads."""
    return {"PIP_CONSTRAINT": str(constraints), "PIP_BUILD_CONSTRAINT": str(constraints)}


def call(environment: Environment, held: Held, *command: str, **variables: str) -> None:
    """Run a step of the set-up; its output goes to stderr, which leaves stdout to the command asked for."""
    variables = {**os.environ, **variables}
    subprocess.run(command, cwd=environment.checkout, env=variables, stdout=sys.stderr, check=True, pass_fds=held)


def failed(error: subprocess.CalledProcessError) -> str:
    """The sentence for a step that failed."""
    return f"The set-up failed at `{' '.join(map(str, error.cmd))}`; its own message is above."


def activated(environment: Environment, variables: Mapping[str, str]) -> dict[str, str]:
    """The variables of a process inside it: its programs are first on the path."""
    path = str(environment.programs) + os.pathsep + variables.get("PATH", "")
    changed = {**variables, "VIRTUAL_ENV": str(environment.place), "PATH": path}
    changed.pop("PYTHONHOME", None)
    return changed
