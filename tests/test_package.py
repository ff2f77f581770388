"""The package as one that is published is expected to be: types for users, `python -m vlmprune`, notes of a release."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import vlmprune
from vlmprune import cli

ROOT = Path(__file__).parent.parent
USER = """
import vlmprune
from PIL import Image
from torch import nn

def shorten(model: nn.Module, image: Image.Image) -> tuple[int, int]:
    with vlmprune.prune(model, "hiprune", keep=0.222) as session:
        pass
    drawing: Image.Image = vlmprune.overlay(image, session, answers="yes")
    drawing.save("kept.png")
    return session.last.tokens[0]

reveal_type(vlmprune.METHODS["hiprune"])
"""


@pytest.mark.slow  # mypy reads torch and transformers
def test_mypy_strict_accepts_a_users_file(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    assert (Path(vlmprune.__file__).parent / "py.typed").exists()
    (tmp_path / "mine.py").write_text(USER)
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "mine.py"]
    package = str(Path(vlmprune.__file__).parent.parent)
    done = subprocess.run(command, cwd=tmp_path, env={"MYPYPATH": package}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Any" not in done.stdout and "Method" in done.stdout


def tool(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_notes_of_a_release() -> None:
    notes = tool("notes").notes
    text = "# Changes\n\n## 0.2.0 (2027-01-01)\n\n- new\n\n## 0.1.0 (unreleased)\n\n- old\n"
    assert notes("v0.2.0", text, "0.2.0") == "- new"
    for tag, version in (("v0.1.0", "0.1.0"), ("v0.2.0", "0.1.0"), ("v0.3.0", "0.3.0")):
        with pytest.raises(ValueError):
            notes(tag, text, version)


def test_the_version_is_the_same_everywhere() -> None:
    for name in ("pyproject.toml", "CITATION.cff"):
        assert vlmprune.__version__ in (ROOT / name).read_text()


@pytest.mark.parametrize(
    ("words", "named", "unnamed"),
    [
        ("methods --needs text=no,merges=yes", ["pool", "tome"], ["hiprune", "trim", "fastv"]),
        ("methods --needs inside=yes --needs text=no", ["vtw"], ["fastv", "dart", "pool"]),
        ("methods --needs random=yes", ["random"], ["hiprune"]),
        ("presets visionzip 640", ["visionzip-640"], ["visionzip-320"]),
        ("hiprune", ["alpha=0.1", "compat='paper'", "text no"], ["per="]),
        ("hiprune --json", ['"alpha": 0.1'], []),
        ("tasks --json", ['"name": "synth-ocr"'], []),
    ],
)
def test_lists_are_filtered(
    words: str, named: list[str], unnamed: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["list", *words.split()]) == 0
    said = capsys.readouterr().out
    first = {line.split()[0] for line in said.splitlines() if line.strip()}
    assert all(name in said for name in named) and not {*unnamed} & first


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("methods --needs colour=no", "not a need"),
        ("methods --needs text", "not a need"),
        ("tasks --needs text=no", "for methods alone"),
        ("presets nothinglikethis", "Nothing in this list"),
        ("methods --model nowhere", "There is no model"),
    ],
)
def test_mistakes_in_lists_are_one_sentence(words: str, sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["list", *words.split()]) == 2
    assert sentence in capsys.readouterr().err
