"""What a command will need at its end is asked at its start, for every command and every package beyond the core."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

import vlmprune
from vlmprune import cli
from vlmprune.bench import load, runner
from vlmprune.core.errors import UserError
from vlmprune.core.extras import DATA, ENGINES, EXTRA, OWN_EXTRA, PACKAGES, SHELL, STUDIES
from vlmprune.report import build

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
COMMANDS = {
    "run": ["{photo}", "-q", "What is it?"],
    "doctor": ["llava"],
    "analyze": ["attention", "llava", "--out", "{new}"],
    "bench": ["--limit", "1", "--out", "{new}"],
    "report": ["{new}"],
    "tune": ["llava", "--images", "{new}", "--loyalty", "0.9"],
    "serve": ["llava", "--engine", "transformers", "--method", "divprune", "--keep", "0.25"],
    "demo": [],
}
WITH_TORCH = {"jinja2"}  # torch depends on it
NEEDED = [(command, name) for command, names in PACKAGES.items() for name in names]


def third_party(path: Path) -> set[str]:
    """Packages that a file imports, at its top or anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module)
    return {name.partition(".")[0] for name in names} - set(sys.stdlib_module_names) - {"vlmprune"}


def test_every_command_says_what_it_needs() -> None:
    commands: Any = getattr(get_command(cli.app), "commands", {})
    assert set(PACKAGES) == set(commands)
    for command, names in PACKAGES.items():
        extra = EXTRAS[OWN_EXTRA.get(command, EXTRA)]
        assert {*names} <= {re.split("[<>=]", item)[0] for item in extra} | WITH_TORCH


def test_nothing_is_imported_that_no_command_asks_for() -> None:
    core = {
        "torch",
        "transformers",
        "numpy",
        "PIL",
        "safetensors",
        "huggingface_hub",
        "packaging",
    }  # the last two with transformers
    asked = (
        {name for names in PACKAGES.values() for name in names} | set(SHELL) | set(DATA) | set(STUDIES) | set(ENGINES)
    )
    for path in Path(vlmprune.__file__).parent.rglob("*.py"):
        assert third_party(path) <= core | asked | OPTIONAL, path


# looked for, and done without; pytest by `vlmprune.testing`; the last by vLLM, which needs it
OPTIONAL = {"triton", "pytest", "torchvision", "pynvml", "prometheus_client"}


@pytest.mark.parametrize(("command", "package"), NEEDED)
def test_a_missing_package_is_told_before_any_work(
    command: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for other in PACKAGES[command]:
        pytest.importorskip(other)
    hide(monkeypatch, package)

    def work(*_: object, **__: object) -> None:
        raise AssertionError("the work has begun")

    monkeypatch.setattr(load, "_load", work)
    monkeypatch.setattr(runner, "run_bench", work)
    words = [word.format(photo=tmp_path / "photo.png", new=tmp_path / "new") for word in COMMANDS[command]]
    assert cli.main([command, *words]) == 2
    err = capsys.readouterr().err
    extra = OWN_EXTRA.get(command, EXTRA)
    assert f"vlmprune {command} needs {package}: pip install 'vlmprune[{extra}]'" in err and err.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("package", PACKAGES["report"])
def test_the_python_function_tells_it_too(package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hide(monkeypatch, package)
    with pytest.raises(UserError, match=f"needs {package}"):
        build(tmp_path)


def hide(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    """`import package` fails from now on."""
    for name in [name for name in sys.modules if name == package or name.startswith(f"{package}.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)


# The commands in a process where packages are missing: each ends well, or with one sentence before any work.
SCRIPT = """
import sys
for name in {hidden}: sys.modules[name] = None
from vlmprune import cli
sys.exit(cli.main({arguments}))
"""


def run_without(hidden: set[str], arguments: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    script = SCRIPT.format(hidden=sorted(hidden), arguments=arguments)
    return subprocess.run([sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, check=False)


def test_data_name_the_extra_that_has_their_package() -> None:
    with_datasets = {"fsspec"}  # which datasets depends on
    for package, extra in DATA.items():
        assert package in {re.split("[<>=]", named)[0] for named in EXTRAS[extra]} | with_datasets


ASKED = {name for command in ("bench", "report") for name in PACKAGES[command]} - WITH_TORCH
REFUSED = [name for name, items in EXTRAS.items() if name != "dev" and {*items} & ASKED]


@pytest.mark.parametrize("extra", REFUSED)
def test_without_an_extra_every_command_works_or_says_so(extra: str, tmp_path: Path) -> None:
    hidden = set(EXTRAS[extra]) - set(SHELL) - WITH_TORCH - {"rich"}  # transformers brings typer, and typer rich
    assert run_without(hidden, ["list", "methods"], tmp_path).returncode == 0
    for command in ("bench", "report"):
        done = run_without(hidden, [command, *(word.format(new="new") for word in COMMANDS[command])], tmp_path)
        assert done.returncode == 2 and "needs matplotlib" in done.stderr and "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_without_typer_there_is_a_sentence(tmp_path: Path) -> None:
    done = run_without({"typer"}, ["list", "methods"], tmp_path)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "The command line needs typer: pip install 'vlmprune[bench]', or '.[bench]' in a clone."
    ]
