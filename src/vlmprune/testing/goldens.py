"""Recorded inputs and outputs of a paper's own code, held against a method.

A case is `NAME.json` beside `NAME.npz`, in a folder or the folders in it. The JSON file:

    {"keep": 64, "family": "llava", "grid": [24, 24, 1], "options": {"alpha": 0.2}}

`keep` alone is required: tokens to keep. `options` are the method's, `seed` that of `view.generator()`;
`encoder_layers`, `decoder_layers` and `has_cls` describe the model (24, 32 and false without them); `video` is true
where the frames of `grid` are a video's and not tiles of an image. The npz file has

    SIGNAL              each signal that the method declares, by its name in `needs`, tokens in slot order
    SIGNAL.PART         the parts of one that has several: `rows` and `cls`, or `visual` and `text`
    slots               [n] the slots of the tokens that are left, where some are gone
    SIGNAL.clip         one number, where `visual` and `text` are of CLIP's towers or not (`Alignment`)
    kept                the expected indices 0..n-1, in any order
    merged.features, merged.anchors    instead of `kept`, the expected `Merged`
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vlmprune.core.errors import UserError
from vlmprune.core.method import Method
from vlmprune.core.plan import acts_of
from vlmprune.core.roles import Observes
from vlmprune.core.view import Aligned, Grid, ImageView, Merged, ModelInfo, Tokens, TowerRows
from vlmprune.testing.check import FAILED, PASSED, Failed, Outcome, in_words, quoted

FIDELITY = "fidelity"
TOLERANCE = 1e-5  # relative, of merged features
_EXPECTED = ("kept", "merged.features", "merged.anchors")


def check_goldens(method: Method, folder: Path) -> Iterator[Outcome]:
    """An outcome for each case under a folder.

    Raises:
        UserError: there is none.
    """
    paths = sorted(path for path in folder.rglob("*.json") if path.with_suffix(".npz").exists())
    if not paths:
        raise UserError(f"The folder {str(folder)!r} holds no golden cases: each is a NAME.json beside a NAME.npz.")
    for path in paths:
        place, status = path.relative_to(folder).with_suffix("").as_posix(), PASSED
        text = f"{place} gives what was recorded"
        try:
            compare(method, path)
        except Failed as error:
            status, text = FAILED, f"{place}: {error}"
        except Exception as error:  # a damaged archive, or whatever the method raises
            status, text = FAILED, f"{place}: expected what was recorded, but {in_words(error)} was raised"
        alone = f"vlmprune check {quoted(method)} --only {FIDELITY} --goldens {shlex.quote(str(folder))}"
        yield Outcome(FIDELITY, None, status, text, alone)


def compare(method: Method, path: Path) -> None:
    """Raise Failed where the method does not select what a case has recorded."""
    told = json.loads(path.read_text())
    with np.load(path.with_suffix(".npz")) as archive:
        arrays = {name: torch.from_numpy(archive[name]) for name in archive.files}
    if not any(name in arrays for name in _EXPECTED):
        raise Failed("expected an array 'kept', or 'merged.features' and 'merged.anchors', but the npz file has none")
    method = replace(method, **told.get("options", {}))
    image = _view(method, told, arrays)
    if isinstance(method, Observes):
        method.observe(image)
    chosen = method.select(image)
    if isinstance(chosen, Merged):
        _close("merged.features", chosen.features, arrays)
        _equal("merged.anchors", chosen.anchors, arrays)
    else:
        _equal("kept", chosen.sort().values, {"kept": _due("kept", arrays).sort().values})


def _equal(name: str, got: Tensor, arrays: dict[str, Tensor]) -> None:
    due = _due(name, arrays)
    if got.tolist() != due.tolist():
        missing = sorted({*due.tolist()} - {*got.tolist()})
        raise Failed(f"expected the recorded {name}, but {len(missing)} of {len(due)} differ, first {missing[:5]}")


def _close(name: str, got: Tensor, arrays: dict[str, Tensor]) -> None:
    due = _due(name, arrays).double()
    if got.shape != due.shape:
        raise Failed(f"expected {name} {list(due.shape)}, but got {list(got.shape)}")
    wrong = ~((got.double() - due).abs() <= TOLERANCE * (due.abs() + due.abs().mean()))
    if bool(wrong.any()):
        raise Failed(f"expected the recorded {name}, but {int(wrong.sum())} of {wrong.numel()} numbers differ")


def _due(name: str, arrays: dict[str, Tensor]) -> Tensor:
    if name not in arrays:
        raise Failed(f"expected an array {name!r} in the npz file, but there is none")
    return arrays[name]


def _view(method: Method, told: dict[str, Any], arrays: dict[str, Tensor]) -> ImageView:
    layers = told.get("encoder_layers", 24), told.get("decoder_layers", 32)
    info = ModelInfo(told.get("family", "llava"), *layers, told.get("has_cls", False))
    grid = Grid(*told["grid"]) if told.get("grid") else None
    act = acts_of(method, told["keep"], info)[0]
    signals = {name: _signal(name, arrays) for name in act.needs}
    slots = arrays.get("slots")
    if slots is None:
        slots = torch.arange(grid.size if grid else _rows(next(iter(signals.values()))))
    act = act.of(len(slots), grid, told.get("video", False))
    return ImageView(told["keep"], slots, grid, info, signals, told.get("seed", 0), act=act)


def _signal(name: str, arrays: dict[str, Tensor]) -> Any:
    def read(key: str) -> Tensor:
        return arrays[key].float() if arrays[key].is_floating_point() else arrays[key]

    if name in arrays:
        return read(name)
    parts = {key.partition(".")[2]: read(key) for key in arrays if key.startswith(f"{name}.")}
    if "rows" in parts:
        return TowerRows(parts["rows"], parts.get("cls"))
    if {"visual", "text"} <= parts.keys():
        pair = parts["visual"], parts["text"]
        return Aligned(*pair, bool(parts["clip"])) if "clip" in parts else Tokens(*pair)
    raise Failed(f"expected an array for the signal {name!r} in the npz file, but there is none")


def _rows(signal: Any) -> int:
    first = signal if isinstance(signal, Tensor) else signal[0]
    return int(first.shape[-1] if first.dim() == 1 else first.shape[0])
