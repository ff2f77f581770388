"""Methods by name, loaded when asked for: vlmprune's own, and those of packages that declare entry points."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from functools import cache, cached_property
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING

from vlmprune.core.declared import by_name, declared, inherited
from vlmprune.core.errors import UserError

if TYPE_CHECKING:  # they import torch, and to list names and summaries is not worth that
    from vlmprune.core.method import Method

GROUP = "vlmprune.methods"  # of entry points
FOLDERS = ("pixels", "vision", "decoder", "hybrid")  # of vlmprune's own methods, in the order in which these act


@cache
def built_in() -> dict[str, str]:
    """vlmprune's own methods by name, as module:Class, in the order of their folders and then of their names."""
    methods = Path(__file__).parent.parent / "methods"
    folders = (declared(methods / folder, f"vlmprune.methods.{folder}", "name") for folder in FOLDERS)
    return by_name(claim for folder in folders for claim in sorted(folder))


class Registry(Mapping[str, "type[Method]"]):
    """Method classes by name. A method is imported at the first look-up of its name, not before.

    Raises:
        UserError: the name looked up belongs to no method or to several, or its package is broken. All other names
            still work.
    """

    @cached_property
    def _points(self) -> dict[str, list[EntryPoint]]:
        found: dict[str, list[EntryPoint]] = {}
        for point in sorted(entry_points(group=GROUP), key=lambda point: (point.name, _package(point))):
            found.setdefault(point.name, []).append(point)
        return found

    @cached_property
    def _targets(self) -> dict[str, str]:
        return {**built_in(), **{name: points[0].value for name, points in self._points.items()}}

    def __getitem__(self, name: str) -> type[Method]:
        if name not in self._targets:
            raise unknown(name, self)
        points = self._points.get(name, [])
        if points and name in built_in():
            raise UserError(
                f"The name {name!r} of {points[0].value} in {_package(points[0])} belongs to a method of vlmprune: "
                "uninstall that package, or rename the method and its entry point there."
            )
        if len(points) > 1:
            claims = " and ".join(f"{_package(point)} ({point.value})" for point in points)
            raise UserError(f"Several methods have the name {name!r}, those of {claims}: uninstall all but one.")
        if points:
            return _of_package(points[0])
        module, _, attribute = self._targets[name].partition(":")
        return getattr(import_module(module), attribute)

    def about(self, name: str) -> tuple[str, str]:
        """The stage and the summary of a method. Those of vlmprune are read from its file, which is not imported.

        Raises:
            UserError: as a look-up of the name.
        """
        if name in built_in() and name not in self._points:
            return inherited(built_in()[name], "stage"), inherited(built_in()[name], "summary")
        return self[name].stage, self[name].summary

    def __contains__(self, name: object) -> bool:
        return name in self._targets

    def __iter__(self) -> Iterator[str]:
        return iter(self._targets)

    def __len__(self) -> int:
        return len(self._targets)


class UnknownMethod(UserError, KeyError):
    """A name that no method has. A KeyError too, as a Mapping promises; its text is the sentence, unquoted."""

    __str__ = UserError.__str__


def unknown(name: str, methods: Iterable[str], presets: Iterable[str] = ()) -> UnknownMethod:
    """The error for a name that is neither a method nor a preset, with the closest name that is."""
    close = difflib.get_close_matches(name.lower(), [*methods, *presets], n=1)
    hint = f"did you mean {close[0]!r}?" if close else "`vlmprune list methods` names all there are."
    return UnknownMethod(f"There is no method {name!r}: {hint}")


def _package(point: EntryPoint) -> str:
    return f"the package {point.dist.name!r}" if point.dist is not None else "a package"


def _of_package(point: EntryPoint) -> type[Method]:
    from vlmprune.core.files import method_class

    try:
        found = point.load()
    except Exception as error:  # a package of others may raise anything when it is imported
        said = " ".join(str(error).split())
        raise UserError(
            f"The method {point.name!r} of {_package(point)} cannot be loaded ({type(error).__name__}: {said}): update "
            "that package, or uninstall it."
        ) from error
    cls = method_class(found, f"{point.value} of {_package(point)}")
    if cls.name != point.name:
        raise UserError(
            f"{point.value} of {_package(point)} has the name {cls.name!r}, and its entry point has {point.name!r}: "
            "make them the same there."
        )
    return cls


METHODS = Registry()
"""Every method class by name: vlmprune's own, and those of installed packages (entry points `vlmprune.methods`)."""
