"""Arrows between the rooms point one way, and importing vlmprune costs next to nothing."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import vlmprune

PACKAGE = Path(vlmprune.__file__).parent
PUBLIC = {"", "core", "assets"}  # what users may import: vlmprune itself, its contracts, the embedded models
ALLOWED = {
    "core": {"core"},
    "methods": {"author", "core", "methods"},
    "models": {"core", "models"},
    "scores": {"scores"},
    "runtime": {"core", "models", "scores", "runtime"},
    "assets": {"core", "assets", "models"},
    "bench": PUBLIC | {"bench", "models", "report"},
    "report": PUBLIC | {"report", "bench", "models"},
    "testing": {"core", "testing"},
    "doctor": PUBLIC | {"doctor", "report", "bench", "models", "runtime"},
}


def imported(path: Path) -> set[str]:
    """Rooms of vlmprune that a file imports, "" for the package itself."""
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
            if node.module == "vlmprune":
                names = [f"vlmprune.{alias.name}" for alias in node.names if (PACKAGE / alias.name).exists()] or names
        for name in names:
            first, *rest = name.split(".")
            if first == "vlmprune":
                rooms.add(rest[0] if rest else "")
    return rooms


@pytest.mark.parametrize("room", ALLOWED)
def test_arrows(room: str) -> None:
    files = list((PACKAGE / room).rglob("*.py"))
    assert files
    for path in files:
        assert imported(path) <= ALLOWED[room], f"{path.relative_to(PACKAGE)} imports {imported(path) - ALLOWED[room]}"


@pytest.mark.parametrize("room", ["core", "methods"])
def test_methods_know_nothing_of_transformers(room: str) -> None:
    for path in (PACKAGE / room).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            modules = (
                [a.name for a in node.names] if isinstance(node, ast.Import) else [getattr(node, "module", "") or ""]
            )
            if isinstance(node, ast.Import | ast.ImportFrom):
                assert not any(module.startswith("transformers") for module in modules), path


def test_method_files_are_small() -> None:
    for path in (PACKAGE / "methods").rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 140, path


def test_no_test_file_imports_another() -> None:
    """What several of them need stands in harness*.py."""
    for path in Path(__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not [name for name in names if name.startswith("test_")], path.name


def test_import_pulls_nothing_heavy() -> None:
    script = (
        "import sys, transformers; before = set(sys.modules); import vlmprune; vlmprune.METHODS; vlmprune.recipe\n"
        "heavy = ('matplotlib', 'pandas', 'datasets', 'gradio', 'vllm', 'typer', 'rich', 'jinja2', 'scipy')\n"
        "print([name for name in heavy if name in set(sys.modules) - before])"
    )
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"
    # Weight, not time: alone it does not even import torch before something is used.
    script = "import sys, vlmprune; print({'torch', 'transformers', 'vlmprune.testing'} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "set()"
    # tiny models need torch and transformers (which takes jinja2), and nothing of the tests or the benchmark
    script = "import sys; import vlmprune.testing; print([name for name in sys.argv[1:] if name in sys.modules])"
    others = ["pytest", "hypothesis", "datasets", "matplotlib", "typer", "rich", "pandas", "vlmprune.bench"]
    out = subprocess.run([sys.executable, "-c", script, *others], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"
