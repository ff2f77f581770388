"""Which adapter is checked, on which tiny models, and how it stands in for the one that vlmprune would take."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import import_module
from types import ModuleType

from vlmprune.core.errors import UserError
from vlmprune.core.files import run_file
from vlmprune.models import FAMILIES as ADAPTERS
from vlmprune.models.base import Adapter
from vlmprune.testing.families import FAMILIES
from vlmprune.testing.family import Family

PAGE = "docs/adding-a-family.md"


@dataclass(frozen=True)
class Declared:
    """An adapter and the tiny models on which it is checked.

    Attributes:
        adapter: its class.
        families: by name of the tiny model.
        written: what `--family` was given.
        all: the tiny models that there are for the adapter, by name.
    """

    adapter: type[Adapter]
    families: Mapping[str, Family]
    written: str
    all: Mapping[str, Family]

    def on(self, names: Sequence[str] | None) -> Declared:
        """On some of its tiny models; UserError where it has none of that name."""
        for name in names or ():
            if name not in self.families:
                raise UserError(f"{self.written} has no tiny model {name!r}: choose from {', '.join(self.families)}.")
        return replace(self, families={name: self.families[name] for name in dict.fromkeys(names or self.families)})


def adapter_of(text: str) -> Declared:
    """The adapter that a family's name, `FILE.py:Adapter`, or `FILE.py` where it holds one, stands for.

    A name is a model type, or one tiny model of it. A file declares tiny models in a dict `FAMILIES`; where it has
    none, they are those that vlmprune has of the adapter's model types.

    Raises:
        UserError: there is none, the file does not run, or nobody declares a tiny model for it.
    """
    if text.endswith(".py") or ".py:" in text:
        return _in_file(text)
    if text not in ADAPTERS and text not in FAMILIES:
        names = ", ".join(dict.fromkeys([*ADAPTERS, *FAMILIES]))
        raise UserError(f"There is no family {text!r}: give FILE.py:Adapter, or one of {names}.")
    own = {name: family for name, family in FAMILIES.items() if family.name == text} or {text: FAMILIES[text]}
    module, _, name = ADAPTERS[next(iter(own.values())).name].partition(":")
    return replace(declared_for(getattr(import_module(module), name)), families=own, written=text)


def declared_for(adapter: type[Adapter]) -> Declared:
    """An adapter class with the tiny models that vlmprune has of its model types."""
    own = {name: family for name, family in FAMILIES.items() if family.name in adapter.families}
    return Declared(adapter, own, adapter.__name__, own)


def _in_file(text: str) -> Declared:
    module, file, name = run_file(text, "an adapter")
    held = _adapters(module)
    if not name and len(held) == 1:
        [name] = held
    if name not in held:
        those = (
            f"its adapters are {', '.join(held)}" if held else "it holds no class derived from Adapter with families"
        )
        wanted = f"no adapter {name!r}" if name else "not exactly one adapter, so name the class"
        raise UserError(f"{file!r} has {wanted}: {those}.")
    adapter = held[name]
    if not (isinstance(adapter.families, tuple) and all(isinstance(one, str) for one in adapter.families)):
        raise UserError(f'{name} in {file!r} has families={adapter.families!r}: write model types as ("aya_vision",).')
    found = getattr(module, "FAMILIES", None)
    if found is None:
        found = declared_for(adapter).families
    if not found:
        types = " or ".join(map(repr, adapter.families))
        raise UserError(f"Nobody declares a tiny model of {types}: add a dict FAMILIES to {file!r}, as {PAGE} says.")
    _check_declaration(found, adapter, file)
    return Declared(adapter, found, text, found)


def _adapters(module: ModuleType) -> dict[str, type[Adapter]]:
    """The file's own classes that are adapters of some family."""
    return {
        name: found
        for name, found in vars(module).items()
        if isinstance(found, type) and issubclass(found, Adapter) and found.families
        if found.__module__ == module.__name__ and not name.startswith("_")
    }


def _check_declaration(found: object, adapter: type[Adapter], file: str) -> None:
    if not isinstance(found, dict) or not all(isinstance(family, Family) for family in found.values()):
        raise UserError(f"FAMILIES in {file!r} must be a dict of tiny models, name to Family, as {PAGE} says.")
    for name, family in found.items():
        if family.name not in adapter.families:
            types = " or ".join(map(repr, adapter.families))
            raise UserError(
                f"The tiny model {name!r} in {file!r} is a {family.name!r}, but the adapter is for {types}."
            )


@contextmanager
def standing_in(adapter: type[Adapter]) -> Iterator[None]:
    """While models of its families get this adapter, whichever they get otherwise."""
    home = import_module(adapter.__module__)
    if adapter.families and getattr(home, adapter.__name__, None) is not adapter:
        raise UserError(f"{adapter.__name__} must be defined at the top of its file, where it can be found by name.")
    before = dict(ADAPTERS)
    ADAPTERS.update(dict.fromkeys(adapter.families, f"{adapter.__module__}:{adapter.__name__}"))
    try:
        yield
    finally:
        ADAPTERS.clear()
        ADAPTERS.update(before)
