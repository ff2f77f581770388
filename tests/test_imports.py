"""Arrows between the rooms point one way, and importing vlmprune costs next to nothing."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path
from statistics import median

import pytest
import transformers

import vlmprune
from vlmprune.core.registry import built_in

PACKAGE = Path(vlmprune.__file__).parent
PUBLIC = {"", "core", "assets"}  # what users may import: vlmprune itself, its contracts, the embedded models
ALLOWED = {
    "core": {"core"},  # its registry names the methods in strings, so that none is imported before it is used
    "author": {"core"},
    "methods": {"author", "core", "methods"},
    "models": {"core", "models"},
    "scores": {"scores"},
    "runtime": {"core", "models", "scores", "runtime"},
    "assets": {"core", "assets", "models"},
    "testing": {"bench", "core", "models", "runtime", "testing"},  # its checks run methods on tiny models
    "": {"core", "assets", "drawing", "runtime"},
    "fit": PUBLIC | {"fit", "methods", "models"},
    "data": {"core", "data"},
    "drawing": {"core", "data", "drawing"},
    "scoring": {"core", "assets", "scoring"},
    "tasks": {"core", "assets", "data", "scoring", "tasks"},
    "bench": PUBLIC | {"bench", "data", "models", "scoring", "tasks"},
    "ask": PUBLIC | {"ask", "bench", "data", "drawing", "models", "scoring", "tasks"},
    "published": PUBLIC | {"published"},
    "report": PUBLIC | {"report", "ask", "bench", "drawing", "published"},
    "doctor": PUBLIC | {"doctor", "ask", "bench", "drawing", "models", "runtime", "testing"},
    "analyze": PUBLIC
    | {"analyze", "ask", "author", "bench", "data", "drawing", "methods", "models"}
    | {"report", "runtime", "scores", "scoring", "tasks"},
    "engines": PUBLIC | {"bench", "engines"},
    "serve": PUBLIC | {"bench", "runtime", "serve"},  # its plugin for vLLM runs the vision side itself
    "demo": PUBLIC | {"ask", "bench", "demo", "drawing", "tasks"},
    "tune": PUBLIC | {"ask", "bench", "data", "scoring", "tasks", "tune"},
    "cli": PUBLIC
    | {
        "analyze",
        "ask",
        "bench",
        "cli",
        "demo",
        "doctor",
        "engines",
        "models",
        "report",
        "serve",
        "tasks",
        "testing",
        "tune",
    },  # composes the others
    "__main__": {"cli"},
}
# The one circle is of data, not of imports: training/ reads the world and the questions of `assets` and writes the
# trained models there. The package is installed without these folders, so nothing in it may import them.
OUTSIDE = {"training", "tests", "tools", "benchmarks"}

TRANSFORMERS = {
    "runtime",
    "models",
    "assets",
    "bench",
    "analyze",
    "doctor",
    "testing",
    "serve",
    "cli",
}  # who imports transformers at all
# Its internals (all modules below `transformers` but `transformers.utils`), and who imports them. A family's modeling
# and processing files are below `models`: adapters read them, the runtime knows no family.
INTERNALS = {
    "models": {"models"},
    "image_processing_base": {"models"},
    "image_processing_backends": {"models"},
    "video_utils": {"models"},
    "vision_utils": {"models"},
    "cache_utils": {"runtime"},
    "masking_utils": {"runtime", "testing"},  # there, for what Llama 4 lacks on 5.19
    "modeling_utils": {"runtime"},
    "utils.generic": {"runtime"},
    "cli": {"serve"},  # transformers' own server
    "image_utils": {"serve"},
}
LIBRARY = Path(transformers.__file__).parent


def files_of(room: str) -> list[Path]:
    """The Python files of a room, which is a folder or one file; "" is the package's own `__init__.py`."""
    alone = PACKAGE / f"{room or '__init__'}.py"
    return [alone] if alone.exists() else sorted((PACKAGE / room).rglob("*.py"))


def modules(path: Path) -> set[str]:
    """Dotted names that a file imports anywhere in it, also for type checkers only; "a.b" for `from a import b`, too,
    where b may be a module of vlmprune or transformers."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert not node.level, f"{path} imports relatively"
            homes = {"vlmprune": PACKAGE, "transformers": LIBRARY}
            for alias in node.names:
                home = homes.get(node.module)
                inside = home is not None and ((home / alias.name).exists() or (home / f"{alias.name}.py").exists())
                names.add(f"{node.module}.{alias.name}" if inside else node.module)
    return names


def imported(room: str) -> dict[str, set[Path]]:
    """The rooms of vlmprune that a room imports, "" for the package itself, each with the files that do."""
    found: dict[str, set[Path]] = {}
    for path in files_of(room):
        for name in modules(path):
            first, *rest = name.split(".")
            if first == "vlmprune":
                found.setdefault(rest[0] if rest else "", set()).add(path)
    return found


def test_every_file_is_in_a_room() -> None:
    listed = {path for room in ALLOWED for path in files_of(room)}
    assert listed == set(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("room", ALLOWED)
def test_arrows(room: str) -> None:
    assert files_of(room)
    found = imported(room)
    beyond = {other: found[other] for other in found.keys() - ALLOWED[room]}
    assert not beyond, f"{room or 'vlmprune'} imports {beyond}"
    unused = ALLOWED[room] - PUBLIC - {room} - found.keys()
    assert not unused, f"{room} does not import {unused} any more: take them off the list"


def test_no_circle() -> None:
    """Raises CycleError where two rooms import each other, directly or by way of others."""
    order = list(TopologicalSorter({room: others - {room} for room, others in ALLOWED.items()}).static_order())
    assert set(order) == set(ALLOWED) and order[-2:] == ["cli", "__main__"]


def test_the_package_imports_nothing_that_is_not_installed_with_it() -> None:
    for path in PACKAGE.rglob("*.py"):
        assert not {name.split(".")[0] for name in modules(path)} & OUTSIDE, path


def of_transformers(room: str) -> set[str]:
    names = {name for path in files_of(room) for name in modules(path)}
    return {name for name in names if name.split(".")[0] == "transformers"}


def test_who_imports_transformers() -> None:
    assert {room for room in ALLOWED if of_transformers(room)} == TRANSFORMERS


def test_who_imports_the_internals_of_transformers() -> None:
    """Exactly the rooms named: one more is a leak, one less a line to take off the list."""
    found: dict[str, set[str]] = {}
    for room in ALLOWED:
        for name in of_transformers(room) - {"transformers", "transformers.utils"}:
            first, *rest = name.split(".")[1:]
            found.setdefault(f"{first}.{rest[0]}" if first == "utils" else first, set()).add(room)
    assert found == INTERNALS


def test_method_files_are_small() -> None:
    """In lines of code: what documents a method may be as long as it needs."""
    lines = {path: _lines_of_code(path) for path in (PACKAGE / "methods").rglob("*.py")}
    assert max(lines.values()) <= 90, max(lines, key=lambda path: lines[path])
    methods = {target.partition(":")[0].rpartition(".")[2] for target in built_in().values()}
    assert median(count for path, count in lines.items() if path.stem in methods) <= 60


def _lines_of_code(path: Path) -> int:
    """Without docstrings, comments and empty lines."""
    text = path.read_text()
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    firsts = [node.body[0] for node in ast.walk(ast.parse(text)) if isinstance(node, documented) and node.body]
    docs = {
        line
        for first in firsts
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)
        for line in range(first.lineno, (first.end_lineno or first.lineno) + 1)
    }
    left = [line.strip() for number, line in enumerate(text.splitlines(), 1) if number not in docs]
    return sum(bool(line) and not line.startswith("#") for line in left)


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
    # what is listed without a model is read from files
    script = (
        "import sys, contextlib, io; from vlmprune.cli import main\n"
        "with contextlib.redirect_stdout(io.StringIO()) as shown:\n"
        "    for line in sys.argv[1:]: assert main(line.split()) == 0\n"
        "print(len(shown.getvalue()) > 10000, {'torch', 'transformers'} & set(sys.modules))"
    )
    asked = ["--help", "bench --help", "list methods", "list presets", "list models", "list tasks"]
    out = subprocess.run([sys.executable, "-c", script, *asked], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "True set()"
    # tiny models need torch and transformers (which takes jinja2), and nothing of the tests or the benchmark
    script = "import sys; import vlmprune.testing; print([name for name in sys.argv[1:] if name in sys.modules])"
    others = ["pytest", "hypothesis", "datasets", "matplotlib", "typer", "rich", "pandas", "vlmprune.bench"]
    out = subprocess.run([sys.executable, "-c", script, *others], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"
