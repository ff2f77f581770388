"""What each family's tests run on: one file for one family, found by being in this folder."""

from __future__ import annotations

import pkgutil
from collections.abc import Iterable
from importlib import import_module
from importlib.metadata import version

from vlmprune.core.errors import UserError
from vlmprune.testing.family import Family


def declared(package: str, path: Iterable[str]) -> dict[str, Family]:
    """The families that the files of a package declare, in the order of the files' names.

    Args:
        package: its name, under which the files are imported.
        path: its folders (`__path__`).

    Returns:
        by name of the tiny model ("qwen2_vl video"): the files' `FAMILIES`, put together.

    Raises:
        UserError: a file declares nothing, or a name that another file has.
    """
    found: dict[str, Family] = {}
    owner: dict[str, str] = {}
    for module in pkgutil.iter_modules(path):
        families = getattr(import_module(f"{package}.{module.name}"), "FAMILIES", None)
        if not families:
            raise UserError(f"{package}.{module.name} declares no family: it needs a dict FAMILIES, name to Family.")
        for name, family in families.items():
            if name in found:
                raise UserError(f"{name!r} is declared by {owner[name]}.py and by {module.name}.py: rename one.")
            found[name], owner[name] = family, module.name
    return found


def tested_here(families: dict[str, Family]) -> dict[str, Family]:
    """Those that are tested with the installed transformers."""
    installed = tuple(map(int, version("transformers").split(".")[:2]))
    return {name: family for name, family in families.items() if family.since <= installed}


FAMILIES = tested_here(declared(__name__, __path__))
