"""The versions of other libraries that vlmprune is tested with, from oldest to newest."""

from __future__ import annotations

import warnings
from functools import cache
from importlib.metadata import PackageNotFoundError, version

# As pyproject.toml declares them, which a test compares: an uninstalled checkout has no metadata to read them from.
WINDOW = {
    "torch": ">=2.13,<2.16",
    "transformers": ">=5.19,<5.25",
    "numpy": ">=2.0.2,<2.5",
    "pillow": ">=10.1,<13.1",
}


def outside() -> dict[str, str]:
    """The versions, by name, of installed libraries that are older or newer than the tested ones."""
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
    """Warn about such versions, once per process."""
    for name, found in outside().items():
        warnings.warn(
            f"vlmprune is tested with {name}{WINDOW[name]}, not with {name} {found}: install a tested version, or run "
            "`vlmprune doctor MODEL` to see whether pruning is still exact on your model.",
            stacklevel=3,  # who called vlmprune.prune
        )
