"""The notebooks of examples/notebooks: stored without outputs, listed on their page, and run from first to last cell.

`python3 tools/extras.py notebooks` runs them in an environment that has nbclient.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "examples" / "notebooks"
NOTEBOOKS = sorted(path.name for path in FOLDER.glob("*.ipynb"))
each = pytest.mark.parametrize("name", NOTEBOOKS)


def read(name: str) -> dict[str, Any]:
    return json.loads((FOLDER / name).read_text(encoding="utf-8"))


def test_every_notebook_is_on_the_page() -> None:
    page = (ROOT / "docs" / "notebooks.md").read_text(encoding="utf-8")
    assert len(NOTEBOOKS) == 5
    assert [name for name in NOTEBOOKS if f"](../examples/notebooks/{name})" not in page] == []


@each
def test_a_notebook_is_stored_without_what_a_run_leaves(name: str) -> None:
    notebook = read(name)
    assert notebook["nbformat"] == 4 and notebook["cells"][0]["cell_type"] == "markdown"
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None


@pytest.mark.slow
@each
def test_a_notebook_runs(name: str, tmp_path: Path) -> None:
    nbformat = pytest.importorskip("nbformat", reason="python3 tools/extras.py notebooks has nbclient")
    nbclient = pytest.importorskip("nbclient", reason="python3 tools/extras.py notebooks has nbclient")
    pytest.importorskip("ipykernel", reason="python3 tools/extras.py notebooks has ipykernel")
    shutil.copy(FOLDER / name, tmp_path)
    notebook = nbformat.read(tmp_path / name, as_version=4)
    nbformat.validate(notebook)
    variables = {**os.environ, "OMP_NUM_THREADS": "1"}
    client = nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}})
    client.execute(env=variables)
    assert any(cell.get("outputs") for cell in notebook.cells)
