"""Methods in a user's own file: `my/scope.py:Scope`, or `my/scope.py` if it holds one method.

A file is run once for each content: after an edit the next call runs it again, and objects made before keep the old
code. A recipe names a file by its whole path, so that the string means the same from every folder. In a path, signs of
the recipe grammar are written as codes, such as %2C for a comma.
"""

from __future__ import annotations

import re
import sys
import traceback
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from vlmprune.core.errors import UserError
from vlmprune.core.method import Method

IN_FILE = re.compile(r"[^,()\[\]:>]+?\.py(?::[A-Za-z_]\w*)?")  # as recipes write it, see `quoted`
_NAME = re.compile(r"[A-Za-z][\w+.-]*")


class Source(NamedTuple):
    """Where the code of a method comes from.

    Attributes:
        path: absolute.
        digest: SHA-256 of the file's content when it was run.
    """

    path: Path
    digest: str


_SOURCES: dict[str, Source] = {}  # by the module that a file was run as


def source_of(method: Method) -> Source | None:
    """The file that a method comes from, or None for a method of a package."""
    return _SOURCES.get(type(method).__module__)


def spelled(method: Method) -> str:
    """A method as recipes name it: by its name, or by file and class."""
    source = source_of(method)
    return method.name if source is None else f"{quoted(source.path)}:{type(method).__name__}"


def quoted(path: Path) -> str:
    """A path as recipes write it."""
    signs = r"[,()\[\]:>]|%(?=[0-9A-F]{2})"  # those of the grammar, and what would be read as one of them
    return re.sub(signs, lambda match: f"%{ord(match[0]):02X}", str(path))


def method_in_file(text: str) -> type[Method]:
    """The class that `PATH.py:Class` or `PATH.py` stands for.

    Raises:
        UserError: there is no such file, it does not run, or it has no such method.
    """
    module, file, name = run_file(text, "a method")
    found = getattr(module, name or _only(module, file), None)
    if found is None:
        raise UserError(f"{file!r} has no class {name!r}: {_held(module)}.")
    if isinstance(found, type) and found.__module__ != module.__name__:
        raise UserError(f"{file!r} only imports {name!r} from {found.__module__}: name the file that holds the class.")
    return method_class(found, f"{name or found.__name__!r} in {file!r}")


def run_file(text: str, what: str) -> tuple[ModuleType, str, str]:
    """What the file of `PATH.py:Class` or `PATH.py` makes when it is run.

    Args:
        what: is looked for in it, for the sentence where there is no file.

    Returns:
        The module, which `sys.modules` holds too; the path as it was written, and the name of the class, or "".

    Raises:
        UserError: there is no such file, or it does not run.
    """
    file, _, name = (text, "", "") if text.endswith(".py") else text.rpartition(":")
    file = re.sub("%([0-9A-F]{2})", lambda match: chr(int(match[1], 16)), file)
    try:
        path = Path(file).expanduser()
        path = path.parent.resolve() / path.name  # a link keeps its own name, which ends in .py
        content = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"There is no file {file!r} to take {what} from.") from None
    except (OSError, RuntimeError, ValueError) as error:  # "~nobody/x.py" is a RuntimeError
        raise UserError(f"The file {file!r} cannot be read: {getattr(error, 'strerror', None) or error}.") from None
    return _run(path, content, file), file, name


def _run(path: Path, content: bytes, file: str) -> ModuleType:
    """The file as a module. It is run, unless it has been run with this content."""
    source = Source(path, sha256(content).hexdigest())
    name = f"vlmprune_file_{sha256(repr(source).encode()).hexdigest()[:20]}"
    if name in _SOURCES:
        return sys.modules[name]
    module = ModuleType(name)
    module.__file__ = str(path)
    sys.modules[name] = module  # dataclasses and pickle look the module of a class up
    try:
        exec(compile(content, path, "exec", dont_inherit=True), vars(module))
    except (Exception, SystemExit) as error:  # it may raise anything
        del sys.modules[name]
        raise UserError(f"{file!r} cannot be run: {_in_words(error, path)}.") from error
    _SOURCES[name] = source
    return module


def _in_words(error: BaseException, path: Path) -> str:
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    if isinstance(error, SyntaxError) and error.filename == str(path):
        lines, said = [error.lineno], error.msg
    else:
        said = " ".join(str(error).split()).rstrip(".")
    where = f" in line {lines[-1]}" if lines and lines[-1] else ""
    return f"{type(error).__name__}{where}" + (f", {said}" if said else "")


def _methods(module: ModuleType) -> list[str]:
    """Names of the module's own method classes."""
    own = {name: found for name, found in vars(module).items() if getattr(found, "__module__", "") == module.__name__}
    return [
        name
        for name, found in own.items()
        if isinstance(found, type) and issubclass(found, Method) and hasattr(found, "name") and not name.startswith("_")
    ]


def _only(module: ModuleType, file: str) -> str:
    found = _methods(module)
    if len(found) != 1:
        raise UserError(f"{file!r} does not hold exactly one method, so name the class: {_held(module)}.")
    return found[0]


def _held(module: ModuleType) -> str:
    found = _methods(module)
    return f"its methods are {', '.join(found)}" if found else "it holds no class derived from Method that has a name"


def method_class(found: object, what: str) -> type[Method]:
    """The object `found`, if it can be used as a method.

    Args:
        what: what an error calls it.

    Raises:
        UserError: it cannot be used.
    """
    if not (isinstance(found, type) and issubclass(found, Method)):
        raise UserError(f"{what} is not a method: derive the class from vlmprune.author.Method.")
    for attribute in ("name", "stage"):
        if not isinstance(getattr(found, attribute, None), str):
            raise UserError(f"{what} has no {attribute}: write `{attribute}: ClassVar[str] = ...` in the class.")
    if not _NAME.fullmatch(found.name):
        raise UserError(f"{what} has the name {found.name!r}: use letters, digits and _ . + - only, a letter first.")
    return found
