"""The project's environments are made once, and again when they have to be; the window is one; nothing is installed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
import warnings
from importlib import import_module
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest
import torch
from selection import SELECTION

import vlmprune
from vlmprune.bench.load import library_versions
from vlmprune.core import window as declared
from vlmprune.testing import FAMILIES

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "tools"))
environments: Any = import_module("environments")
runner: Any = import_module("run")
window: Any = import_module("window")
newest: Any = import_module("newest")

PROJECT = """
[project]
name = "vlmprune"
dependencies = ["torch>=2.13,<2.16", "transformers>=5.20,<5.24", "safetensors"]
[project.optional-dependencies]
bench = ["rich"]
dev = ["vlmprune[bench]", "pytest"]
"""
PINS = """\
# all
rich==15.0.0
torch==2.13.0
transformers==5.23.0

# only with the CUDA build of torch, which ...
triton==3
"""

LISTING = """
import json, sys, pytest

class Listing:
    def pytest_collection_finish(self, session):
        found = []
        for item in session.items:
            values = item.callspec.params if hasattr(item, "callspec") else {}
            found.append([item.path.name, item.originalname, values])
        print("FOUND" + json.dumps(found, default=str))

sys.exit(pytest.main(sys.argv[1:], plugins=[Listing()]))
"""


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout whose set-up makes files instead of environments, and notes its steps in `steps`."""
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    (checkout / "pyproject.toml").write_text(PROJECT)
    (checkout / "constraints.txt").write_text(PINS)
    monkeypatch.setenv("VLMPRUNE_ENVIRONMENTS", str(tmp_path / "environments"))
    for module in (runner, window, newest):
        monkeypatch.setattr(module, "ROOT", checkout)

    def call(environment: Any, held: tuple[int, ...], *command: str, **variables: str) -> None:
        step = command[2]
        with (checkout / "steps").open("a") as steps:
            steps.write(step + "\n")
        if step == "venv":
            environment.programs.mkdir(parents=True)
            environment.python.write_text("")

    monkeypatch.setattr(environments, "call", call)
    return checkout


def own(checkout: Path) -> list[str]:
    """The steps of one set-up of the checkout's own environment."""
    file = checkout / "steps"
    file.write_text("")
    environment = runner.pinned(checkout)
    with environments.alone(environment) as held:
        environments.set_up(environment, held)
    return file.read_text().split()


# ---------------------------------------------------------------- of a checkout


def test_set_up_once(checkout: Path) -> None:
    assert own(checkout) == ["venv", "pip"]
    assert own(checkout) == []


@pytest.mark.parametrize("name", ["constraints.txt", "pyproject.toml"])
def test_set_up_again_when_requirements_change(checkout: Path, name: str) -> None:
    own(checkout)
    (checkout / name).write_text((checkout / name).read_text() + "# more\n")
    assert own(checkout) == ["pip"]


def test_an_interrupted_set_up_starts_afresh(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = environments.call

    def killed(environment: Any, held: tuple[int, ...], *command: str, **variables: str) -> None:
        if command[2] == "pip":
            raise KeyboardInterrupt
        whole(environment, held, *command, **variables)

    monkeypatch.setattr(environments, "call", killed)
    with pytest.raises(KeyboardInterrupt):
        own(checkout)
    (checkout / ".venv" / "half-installed").write_text("")
    monkeypatch.setattr(environments, "call", whole)
    assert own(checkout) == ["venv", "pip"]
    assert not (checkout / ".venv" / "half-installed").exists()


def test_a_folder_of_the_users_own_that_is_no_environment_is_kept(checkout: Path, capsys: Any) -> None:
    (checkout / ".venv").mkdir()
    (checkout / ".venv" / "notes.txt").write_text("mine")
    assert runner.main(["pytest"]) == 2 and "move it away" in capsys.readouterr().err
    assert (checkout / ".venv" / "notes.txt").read_text() == "mine" and not (checkout / "steps").exists()


def test_an_environment_of_the_users_own_is_kept(checkout: Path) -> None:
    (checkout / ".venv" / "bin").mkdir(parents=True)
    for name in ("bin/python", "own"):
        (checkout / ".venv" / name).write_text("")
    assert own(checkout) == ["pip"]
    assert (checkout / ".venv" / "own").exists()


def test_a_checkout_that_was_moved_is_set_up_anew(checkout: Path) -> None:
    own(checkout)
    mark = checkout / ".venv" / "vlmprune.json"
    mark.write_text(mark.read_text().replace(str(checkout), "/elsewhere"))
    assert own(checkout) == ["venv", "pip"]


def test_a_failed_step_is_one_sentence(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise subprocess.CalledProcessError(1, ["pip", "install"])

    monkeypatch.setattr(environments, "call", fail)
    for main, command in ((runner.main, "pytest"), (window.main, "oldest")):
        assert main([command]) == 2
        assert "The set-up failed at `pip install`" in capsys.readouterr().err
    assert runner.main([]) == 2
    assert "Say what to run" in capsys.readouterr().err
    assert window.main(["middle"]) == 2
    assert "Say which end of the window" in capsys.readouterr().err


# ---------------------------------------------------------------- of the window


def shared_steps(checkout: Path, environment: Any) -> list[str]:
    """The steps until an environment that checkouts share is ready."""
    file = checkout / "steps"
    file.write_text("")
    with environments.kept_ready(environment):
        assert environment.ready()
    return file.read_text().split()


def test_an_environment_of_the_window_serves_all_checkouts(checkout: Path) -> None:
    assert shared_steps(checkout, window.environment(checkout, "oldest")) == ["venv", "pip"]
    other = checkout.with_name("other")
    other.mkdir()
    for name in ("pyproject.toml", "constraints.txt"):
        (other / name).write_text((checkout / name).read_text())
    assert shared_steps(checkout, window.environment(other, "oldest")) == []
    assert shared_steps(checkout, window.environment(other, "newest")) == ["venv", "pip"]
    (other / "pyproject.toml").write_text(PROJECT.replace("5.20", "5.21"))
    assert shared_steps(checkout, window.environment(other, "oldest")) == ["pip"]


def test_what_the_environments_of_the_window_hold(checkout: Path) -> None:
    oldest, latest = (window.environment(checkout, side) for side in window.SIDES)
    rest = ("safetensors", "rich", "pytest")
    assert oldest.requirements == ("--upgrade", "torch==2.13", "transformers==5.20", *rest)
    assert latest.requirements == ("--upgrade", "torch>=2.13,<2.16", "transformers>=5.20,<5.24", *rest)
    assert oldest.constraints == latest.constraints == "# all\nrich==15.0.0\n"


@pytest.mark.skipif(os.name == "nt", reason="no locks")
def test_an_environment_in_use_is_not_remade(checkout: Path) -> None:
    """A checkout with other requirements waits for the run that holds it; one with the same does not."""
    import fcntl

    environment = window.environment(checkout, "oldest")
    with environments.kept_ready(environment):
        with environment.lock.open() as other:
            fcntl.flock(other, fcntl.LOCK_SH | fcntl.LOCK_NB)
        with environment.lock.open() as other, pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with environment.lock.open() as other:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_the_tests_run_there_are_those_of_the_checkout(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[tuple[list[str], dict[str, Any]]] = []

    def start(command: list[str], **options: Any) -> Any:
        started.append((command, options))
        return subprocess.CompletedProcess(command, 0 if "-c" in command else 1)

    monkeypatch.setattr(subprocess, "run", start)
    assert window.main(["oldest", "-k", "gemma3"]) == 1
    command, options = started[-1]
    assert command[1:5] == ["-m", "pytest", "-m", "window"] and command[-2:] == ["-k", "gemma3"]
    assert options["cwd"] == checkout and options["env"]["PYTHONPATH"] == str(checkout / "src")
    assert Path(command[0]).is_relative_to(checkout.parent / "environments" / "oldest")


# ---------------------------------------------------------------- beyond the window


@pytest.fixture
def pip(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What a pip knows, whether the tests pass, and what was installed for them."""
    state: dict[str, Any] = {"answer": "", "passes": True, "installed": None}

    def start(command: list[str], **_: Any) -> Any:
        assert command[1:5] == ["-m", "pip", "index", "versions"]
        if not state["answer"]:
            raise subprocess.CalledProcessError(1, command)
        return subprocess.CompletedProcess(command, 0, stdout=state["answer"])

    def test(environment: Any, options: list[str]) -> int:
        state["installed"] = environment
        return 0 if state["passes"] else 1

    monkeypatch.setattr(newest.subprocess, "run", start)
    monkeypatch.setattr(newest, "test", test)
    return state


def test_nothing_beyond_the_window(pip: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    pip["answer"] = "transformers (5.23.1)\nAvailable versions: 5.23.1, 5.9.0\n"
    assert newest.main([]) == 0
    assert "5.23.1 is the newest release and lies in the window: transformers>=5.20,<5.24" in capsys.readouterr().out
    assert pip["installed"] is None


@pytest.mark.parametrize("passes", [True, False])
def test_the_newest_release_is_tried(pip: dict[str, Any], capsys: pytest.CaptureFixture[str], passes: bool) -> None:
    pip.update(answer="torch (2.10.0)\nAvailable versions: 5.24.0, 5.23.1\n", passes=passes)
    assert newest.main([]) == (0 if passes else 1)
    said = capsys.readouterr().out
    if passes:
        assert "can be widened in pyproject.toml: transformers>=5.20,<5.25." in said
    else:
        assert "transformers 5.24.0 does not pass" in said and "it stays transformers>=5.20,<5.24." in said
    assert pip["installed"].place.name == "beyond" and pip["installed"].constraints == ""
    assert pip["installed"].requirements[1:3] == ("torch>=2.13,<2.16", "transformers==5.24.0")


def test_a_version_by_name(pip: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert newest.main(["2.16.1", "--package", "torch"]) == 0
    assert pip["installed"].requirements[1:3] == ("torch==2.16.1", "transformers>=5.20,<5.24")
    assert "torch>=2.13,<2.17" in capsys.readouterr().out
    assert newest.main(["5.22.0"]) == 0
    assert "in which it lies already" in capsys.readouterr().out
    assert newest.main(["main"]) == 2
    assert "is not a version" in capsys.readouterr().err


def test_a_release_that_cannot_be_installed(
    pip: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> int:
        raise subprocess.CalledProcessError(1, ["pip", "install"])

    monkeypatch.setattr(newest, "test", fail)
    assert newest.main(["5.24.0"]) == 1
    assert "does not pass" in capsys.readouterr().out


def test_without_a_network(pip: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert newest.main([]) == 2
    assert "is there a network?" in capsys.readouterr().err


# ---------------------------------------------------------------- as it is declared


def test_the_window_is_declared_once() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    ranges = {name: str(found).removeprefix(name) for name, found in window.declared(ROOT)[0].items()}
    assert ranges == declared.WINDOW
    assert set(ranges) == {"torch", "transformers", "numpy", "pillow"}
    assert project["version"] == vlmprune.__version__ == library_versions()["vlmprune"]


def test_the_pinned_versions_lie_in_the_window() -> None:
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        name, _, version = line.partition("==")
        if found := window.declared(ROOT)[0].get(name):
            assert newest.numbers(found.oldest) <= newest.numbers(version) < newest.numbers(found.beyond), line


def test_the_selection_names_tests_that_there_are() -> None:
    command = [sys.executable, "-c", LISTING, "-m", "window", "--collect-only", "-qq", "-o", "addopts="]
    out = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True).stdout
    items = json.loads(next(line for line in out.splitlines() if line.startswith("FOUND")).removeprefix("FOUND"))
    for file, part in SELECTION.items():
        tests = {test for name, test, _ in items if name == file}
        assert tests and tests >= set(part.tests), file
        for parameter, values in part.only.items():
            found = {given.get(parameter) for name, _, given in items if name == file}
            assert found - {None} == set(values), (file, parameter)


# ---------------------------------------------------------------- at run time


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> dict[str, str | None]:
    """The versions that are found; None for a library without metadata."""
    versions: dict[str, str | None] = {
        "torch": "2.13.0+cpu", "transformers": "5.24.3", "numpy": "2.0.2", "pillow": "13.0.0"
    }  # fmt: skip

    def version(name: str) -> str:
        found = versions[name]
        if found is None:
            raise PackageNotFoundError(name)
        return found

    monkeypatch.setattr(declared, "version", version)
    declared.warn_outside.cache_clear()
    return versions


@pytest.mark.parametrize(
    ("library", "version"),
    [
        ("transformers", "5.18.4"),
        ("transformers", "5.25.0"),
        ("transformers", "5.25.0.dev0"),
        ("torch", "2.16.0+cu130"),
    ],
)
def test_a_version_outside_warns_once(installed: dict[str, Any], library: str, version: str) -> None:
    installed[library] = version
    model = FAMILIES["llava"].build()
    with pytest.warns(UserWarning, match=f"not with {library} ") as caught:
        vlmprune.prune(model, "divprune:0.5")
        vlmprune.prune(model, "divprune:0.5")
    (warning,) = caught
    sentence = str(warning.message)
    assert version in sentence and f"{library}{declared.WINDOW[library]}" in sentence
    assert "vlmprune doctor MODEL" in sentence
    assert warning.filename == __file__  # it points to the call of vlmprune.prune


@torch.no_grad()
def test_versions_inside_and_unknown_ones_say_nothing(installed: dict[str, Any]) -> None:
    installed["pillow"] = None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        vlmprune.prune(FAMILIES["llava"].build(), "divprune:0.5")
