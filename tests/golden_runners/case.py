"""A golden case on disk, and the bookkeeping that nothing it expects is left unchecked."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vlmprune.core.budget import Keep
from vlmprune.core.method import Method
from vlmprune.core.plan import acts_of
from vlmprune.core.view import Grid, ImageView, ModelInfo

LLAVA = ModelInfo("llava", encoder_layers=24, decoder_layers=32, has_cls=True)
QWEN = ModelInfo("qwen2_5_vl", encoder_layers=32, decoder_layers=28, has_cls=False)


class Failed(Exception):
    """The library's result is not the golden one; the text says where."""


class Skipped(Exception):
    """The case shows a mistake of the authors' code that the library does not repeat; the text says which and why.

    Only a case whose JSON file says `strict` may be skipped.
    """


class Case:
    """`METHOD/caseN.npz` with `caseN.json`.

    Arrays are read once as an input or compared as an expectation; `finish` fails where one was neither.

    Attributes:
        method: name of the folder.
        function: what was executed, where a folder mixes methods.
        group: what is listed apart when there is no runner: the folder, or `folder/function` where it mixes methods.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.method = path.parent.name
        try:
            meta = json.loads(path.read_text())
            with np.load(path.with_suffix(".npz")) as arrays:
                self.arrays = {name: arrays[name] for name in arrays.files}
        except Exception as error:  # whatever a damaged archive makes numpy raise
            raise Failed(f"cannot be read: {type(error).__name__}: {error}") from error
        self.settings: dict[str, Any] = {**meta, **meta.get("params", {})}
        self.seen: set[str] = set()
        self.compared: set[str] = set()
        self.compared_settings: set[str] = set()  # results that stand in the JSON file
        self.notes: list[str] = []
        self.function = meta.get("method", self.method)
        self.group = f"{self.method}/{self.function}" if self.method == "unibench_tiles" else self.method

    def __str__(self) -> str:
        return f"{self.method}/{self.path.stem}"

    def __contains__(self, name: str) -> bool:
        return name in self.arrays

    def __getitem__(self, name: str) -> Any:
        """A setting of the JSON file."""
        if name not in self.settings:
            raise Failed(f"the JSON file has no {name!r}")
        return self.settings[name]

    def get(self, name: str, default: Any = None) -> Any:
        return self.settings.get(name, default)

    def input(self, name: str) -> Tensor:
        """An input array; floats as float32."""
        if name not in self.arrays:
            raise Failed(f"the npz file has no {name!r}")
        self.seen.add(name)
        values = torch.from_numpy(self.arrays[name])
        return values.float() if values.is_floating_point() else values

    def expect(self, name: str, got: Tensor | Iterable[int], tolerance: float = 1e-5) -> None:
        """Compare `got` with an expected array: whole numbers exactly, floats within `tolerance` relative.

        A case need not have the array; `finish` sees to it that every array it has is looked at.
        """
        if name not in self.arrays:
            return
        self.seen.add(name)
        self.compared.add(name)
        want = torch.from_numpy(self.arrays[name])
        got = got if isinstance(got, Tensor) else torch.tensor(list(got), dtype=torch.long)
        if got.shape != want.shape:
            raise Failed(f"{name}: shape {list(got.shape)} instead of {list(want.shape)}")
        if want.is_floating_point():
            want = want.double()
            error = (got.double() - want).abs()
            allowed = tolerance * (want.abs() + want.abs().mean())
            wrong = ~(error <= allowed)  # also where an error is NaN
        else:
            wrong = got != want
        if wrong.any():
            where = wrong.nonzero()[0].tolist()
            raise Failed(
                f"{name}: {int(wrong.sum())} of {wrong.numel()} differ, first at {where}: "
                f"{got[tuple(where)].item()} instead of {want[tuple(where)].item()}"
            )

    def expect_nearly(self, name: str, got: Tensor, share: float) -> None:
        """Compare indices that hardware rounds differently: if they are not equal, note that `share` of them agree."""
        try:
            self.expect(name, got)
        except Failed:
            due = len(self.arrays[name])
            common = len(set(self.arrays[name].tolist()) & set(got.tolist()))
            if len(got) != due or common < share * due:
                raise
            self.notes.append(f"{name}: {common} of {due} agree in {self.get('dtype')}")

    def expect_setting(self, name: str, got: Any) -> None:
        """Compare a number that the JSON file gives, where it does."""
        if name in self.settings and self.settings[name] != got:
            raise Failed(f"{name}: {got!r} instead of {self.settings[name]!r}")

    def finish(self) -> None:
        left = sorted(set(self.arrays) - self.seen)
        if left:
            raise Failed(f"the runner does not look at {', '.join(left)}")
        if not (self.compared or self.compared_settings) and "official_raises" not in self.settings:
            raise Failed("the runner compared nothing")


Runner = Callable[[Case], None]


def run(case: Case, runner: Runner) -> None:
    """Run a case to its end, or raise Failed (or whatever the library raised), or Skipped."""
    try:
        runner(case)
    except Skipped as reason:
        if "strict" not in case.settings:
            raise Failed(f"skipped ({reason}), though its JSON file does not say 'strict'") from reason
        raise
    case.finish()


def find(root: Path) -> list[Path]:
    """JSON files of all cases under `root`, by method and number; also one that is missing beside an npz file."""
    files = (path for kind in ("json", "npz") for path in root.glob(f"*/case*.{kind}"))
    cases = {path.with_suffix(".json") for path in files if re.fullmatch(r"case\d+", path.stem)}
    return sorted(cases, key=lambda path: (path.parent.name, int(path.stem[4:])))


def view(
    n: int,
    keep: int,
    signals: dict[str, Any] | None = None,
    info: ModelInfo = LLAVA,
    grid: Grid | None = None,
    seed: int = 0,
) -> ImageView:
    """An image whose `n` tokens are all present."""
    return ImageView(keep=keep, slots=torch.arange(n), grid=grid, info=info, signals=signals or {}, seed=seed)


def acting(method: Method, keep: Keep, image: ImageView) -> ImageView:
    """The same image as the first act of a method under this budget sees it."""
    return replace(image, act=acts_of(method, keep, image.info)[0])


def sequence(kept: Tensor, before: int, n: int, after: int) -> Tensor:
    """Columns of a prompt `[before | n image tokens | after]` that stay when the image keeps `kept`."""
    return torch.cat([torch.arange(before), kept + before, torch.arange(after) + before + n])


def positions(method: Method, info: ModelInfo, columns: Tensor) -> Tensor:
    """1-D position ids of the columns that stay, by the method's policy."""
    return columns if method.positions(info) == "original" else torch.arange(len(columns))


def noise(case: Case, name: str) -> Tensor:
    """What the case adds to the densities of a clustering: the recorded array, and zeros where there is none."""
    return case.input(name) if name in case else torch.zeros(())


def check_exact(kept: Tensor, keep: int, n: int) -> None:
    """Where the authors' code fails there is nothing to compare, but the library must return its budget."""
    good = kept.unique().tolist() == kept.tolist() and len(kept) == keep and bool(((kept >= 0) & (kept < n)).all())
    if not good:
        raise Failed(f"{len(kept)} tokens, or not distinct sorted indices below {n}, instead of {keep}")
