"""Class attributes written as literals, read from the files of a package without importing them."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from vlmprune.core.errors import UserError

ROOT = Path(__file__).parent.parent.parent  # of the package


def declared(folder: Path, package: str, attribute: str) -> Iterator[tuple[Any, str]]:
    """The value that each class of a package gives to a class attribute: `name = "divprune"`, annotated or not.

    Args:
        folder: of the package; files below it are read too.
        package: its name, as in an import.

    Yields:
        The value and its class as module:Class, by file and in the order of the file. A class that inherits the value
        is left out.

    Raises:
        UserError: the value is computed, so it cannot be read from the file.
    """
    for path in sorted(folder.rglob("*.py")):
        module = ".".join((package, *path.relative_to(folder).with_suffix("").parts))
        for node in _body(path):
            if isinstance(node, ast.ClassDef):
                for value in _values(node, attribute):
                    yield _literal(value, f"{path}, line {value.lineno}: {attribute}"), f"{module}:{node.name}"


def inherited(target: str, attribute: str) -> Any:
    """The value that a class of vlmprune has for a class attribute: its own, or that of the first base that has one.

    Args:
        target: the class as module:Class, or a name that its module imports from elsewhere in vlmprune.

    Returns:
        The value; None if neither the class nor its bases in vlmprune give one.

    Raises:
        UserError: as for `declared`.
    """
    module, _, name = target.partition(":")
    path = ROOT.joinpath(*module.split(".")).with_suffix(".py")
    for node in _body(path) if path.exists() else ():
        if isinstance(node, ast.ImportFrom) and (known := _imported(node, name)):
            return inherited(known, attribute)
        if isinstance(node, ast.ClassDef) and node.name == name:
            for value in _values(node, attribute):
                return _literal(value, f"{path}, line {value.lineno}: {attribute}")
            bases = (base.id for base in node.bases if isinstance(base, ast.Name))
            found = (inherited(f"{module}:{base}", attribute) for base in bases)
            return next((value for value in found if value is not None), None)
    return None


def _imported(node: ast.ImportFrom, name: str) -> str | None:
    """Where a name comes from, if this line imports it."""
    return next((f"{node.module}:{one.name}" for one in node.names if (one.asname or one.name) == name), None)


@cache
def _body(path: Path) -> list[ast.stmt]:
    return ast.parse(path.read_text(encoding="utf-8")).body


def _values(node: ast.ClassDef, attribute: str) -> Iterator[ast.expr]:
    for line in node.body:
        if isinstance(line, ast.Assign | ast.AnnAssign) and line.value is not None:
            targets = line.targets if isinstance(line, ast.Assign) else [line.target]
            if any(isinstance(target, ast.Name) and target.id == attribute for target in targets):
                yield line.value


def _literal(value: ast.expr, where: str) -> Any:
    try:
        return ast.literal_eval(value)
    except ValueError:
        raise UserError(f"{where} is read without running the file, so write it as a literal.") from None


def by_name(claims: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Classes by the name that they claim.

    Raises:
        UserError: two classes claim the same name.
    """
    found: dict[str, str] = {}
    for name, target in claims:
        if name in found:
            raise UserError(f"{found[name]} and {target} both claim the name {name!r}: give one of them another.")
        found[name] = target
    return found
