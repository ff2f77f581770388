"""A new method is one file: in a copy of the checkout two are added, and tests and pages have them without an edit."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILE = '''"""Two methods on trial: one merges at several layers and cuts the cache, one watches before it cuts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vlmprune.author import (
    Act, At, HiddenStates, ImageView, Keep, Merged, Method, ModelInfo, Need, Observes, Scorer, ascending, resolve_keep,
    top_k,
)  # fmt: skip


@dataclass
class Gathering(Method):
    """The longest hidden states stay, the mean of the others is added to the last of them, at two layers.

    Paper: A Trial of Gathering (arXiv 2401.00001).

    Formula: x [n, D] hidden states; the top `keep` by |x_i| stay. Time O(n D), memory O(n D).

    Defaults: before layers 1 and 2; positions are kept.

    Differences from the authors' code: none.
    """

    name: ClassVar[str] = "gathering"
    stage: ClassVar[str] = "decoder"
    summary: ClassVar[str] = "the longest hidden states, and the mean of the others"
    budget_means: ClassVar[str] = "what each cut leaves of the one before"
    merges: ClassVar[bool] = True
    trims_cache: ClassVar[bool] = True

    def acts(self, info: ModelInfo, keep: Keep) -> Sequence[int | At | None]:
        return (1, 2)

    def needs(self, info: ModelInfo) -> dict[str, Need]:
        return {"states": HiddenStates()}

    def select(self, view: ImageView) -> Merged:
        states = view["states"].visual.float()
        kept = ascending(top_k(states.norm(dim=1), view.keep))
        others = torch.ones(view.n, dtype=torch.bool, device=kept.device)
        others[kept] = False
        features = states[kept]
        features[-1] += states[others].mean(0)
        return Merged(features, kept)


@dataclass
class Watching(Scorer, Observes):
    """Lengths of hidden states, summed over two layers, of which only the second cuts.

    Paper: A Trial of Watching (arXiv 2401.00002).

    Formula: x_l [n, D] hidden states before layer l; score [n] = |x_1| + |x_2|. Time O(n D), memory O(n).

    Defaults: watches before layers 1 and 2, cuts before layer 2; positions are kept.

    Differences from the authors' code: none.
    """

    name: ClassVar[str] = "watching"
    stage: ClassVar[str] = "decoder"
    summary: ClassVar[str] = "the longest hidden states of two layers"

    def acts(self, info: ModelInfo, keep: Keep) -> Sequence[int | At | None]:
        return (1, 2)

    def needs(self, info: ModelInfo) -> dict[str, Need]:
        return {"states": HiddenStates()}

    def budget(self, act: Act, n: int, total: int) -> int:
        return resolve_keep(act.keep, n) if act.number else n

    def observe(self, view: ImageView) -> None:
        lengths = view["states"].visual.float().norm(dim=1)
        seen = view.memory.setdefault("seen", lengths.new_zeros(view.total))
        seen[view.slots] += lengths

    def score(self, view: ImageView) -> Tensor:
        return view.memory["seen"][view.slots]
'''


def run_in(tree: Path, *arguments: str) -> str:
    """What Python says that runs on the copy; an exit code other than 0 fails."""
    environment = {**os.environ, "PYTHONPATH": str(tree / "src"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *arguments], env=environment, cwd=tree, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


@pytest.mark.slow
def test_a_new_file_is_in_every_test_and_on_the_page(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    left_out = shutil.ignore_patterns("__pycache__", "goldens", ".*", "results", "*.egg-info")
    shutil.copytree(ROOT, tree, ignore=left_out, symlinks=True)
    (tree / "src" / "vlmprune" / "methods" / "decoder" / "trial.py").write_text(FILE, encoding="utf-8")

    run_in(tree, "tools/docs.py")
    page = (tree / "docs" / "methods.md").read_text(encoding="utf-8")
    assert "## gathering" in page and "## watching" in page

    said = run_in(
        tree, "-m", "pytest", "tests/test_methods_on_models.py", "tests/test_methods.py",
        "-m", "slow or not slow", "-k", "gathering or watching", "-rp", "-p", "no:cacheprovider",
    )  # fmt: skip
    passed = re.findall(r"^PASSED tests/(\w+)\.py::(\w+)\[(gathering|watching)", said, re.MULTILINE)
    for name in ("gathering", "watching"):
        assert ("test_methods", "test_every_method_says_what_it_is", name) in passed
        assert passed.count(("test_methods_on_models", "test_every_method_on_every_family", name)) > 20
