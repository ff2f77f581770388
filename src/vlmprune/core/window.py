"""The versions of other libraries that vlmprune is tested with, from oldest to newest."""

from __future__ import annotations

import warnings
from functools import cache
from importlib.metadata import PackageNotFoundError, version

# As pyproject.toml declares them, which a test compares: an uninstalled checkout has no metadata to read them from.
WINDOW = {
    "torch": ">=2.13,<2.16",
    "transformers": ">=5.20,<5.25",
    "numpy": ">=2.0.2,<2.5",
    "pillow": ">=10.1,<13.1",
}


def outside() -> dict[str, str]:
    """Version by name of the installed libraries that are older or newer than what is tested."""
    from packaging.specifiers import SpecifierSet  # a dependency of transformers; `import vlmprune` stays light

    found = {}
    for name, window in WINDOW.items():
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # built into the program that imports it, without metadata
            continue
        if SpecifierSet(window).contains(found[name], prereleases=True):
            del found[name]
    return found


@cache
def warn_outside() -> None:
    """Warn of such versions, once a process."""
    for name, found in outside().items():
        warnings.warn(
            f"vlmprune is not tested with {name} {found}, only with {name}{WINDOW[name]}: install one of these, or see "
            "whether `vlmprune doctor MODEL` still proves pruning exact on your model.",
            stacklevel=3,  # who called vlmprune.prune
        )
