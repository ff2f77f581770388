"""The settings that are compared: those of HiPrune's table 5 and figure 7, and of Hi-Lo's table 9 and figure 6."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vlmprune.analyze import variants
from vlmprune.core.files import quoted
from vlmprune.core.view import ModelInfo

HIPRUNE, HILO = "hiprune", "hilo"
DEFAULT = "default"
KEEPS = {HIPRUNE: 0.333, HILO: 0.2}  # the papers' budgets
_MOST_LAYERS = 8


class Setting(NamedTuple):
    """A method with one option changed.

    Attributes:
        method: hiprune or hilo.
        knob: what is changed, "default" for nothing.
        value: in words.
        recipe: as `vlmprune bench` takes it.
    """

    method: str
    knob: str
    value: str
    recipe: str


def settings_for(info: ModelInfo) -> list[Setting]:
    """All settings that a model allows, the defaults first among those of their method."""
    return [*_hiprune(info), *_hilo()]


def _hiprune(info: ModelInfo) -> Iterator[Setting]:
    def setting(knob: str, value: str, options: str = "", variant: bool = False) -> Setting:
        name = f"{quoted(_file())}:HiPruneVariant" if variant else HIPRUNE
        return Setting(HIPRUNE, knob, value, f"{name}{options}:{KEEPS[HIPRUNE]}")

    yield setting(DEFAULT, "")
    if info.has_cls:
        yield setting("attention", "of CLS", "(attention='cls')", variant=True)
    yield setting("token type", "no registers", "(alpha=1.0)")
    yield setting("token type", "no anchors, buffers", "(alpha=0.0)")
    for count, name in ((0, "none"), (2, "row"), (8, "square")):
        yield setting("neighbours", f"{count} ({name})", f"(neighbours={count})", variant=True)
    count = min(_MOST_LAYERS, info.encoder_layers)
    for layer in np.unique(np.linspace(0, info.encoder_layers - 1, count).round().astype(int)).tolist():
        yield setting("object layer", str(layer), f"(object_layer={layer})")
    for alpha in (0.3, 0.5, 0.7):
        yield setting("alpha", str(alpha), f"(alpha={alpha})")


def _hilo() -> Iterator[Setting]:
    def setting(knob: str, value: str, options: str = "") -> Setting:
        return Setting(HILO, knob, value, f"{HILO}{options}:{KEEPS[HILO]}")

    yield setting(DEFAULT, "")
    for strength in (0, 0.1, 0.5, 1.0):
        yield setting("lambda", "0 (no fusion)" if not strength else str(strength), f"(lambda_={strength})")
    for alpha in (2, 3, 4, 5):
        yield setting("alpha", str(alpha), f"(alpha={alpha})")
    for tau in (0.05, 0.1, 0.15, 0.2):
        yield setting("tau", str(tau), f"(tau={tau})")


def _file() -> Path:
    return Path(variants.__file__)
