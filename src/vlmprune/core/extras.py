"""The packages that each command needs beyond the core, checked when it starts and not after it has done its work."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from vlmprune.core.errors import UserError

EXTRA = "bench"  # the extra in pyproject.toml that has these packages
DRAWING = ("matplotlib", "jinja2")
PACKAGES: dict[str, tuple[str, ...]] = {
    "run": ("jinja2",),  # chat templates
    "doctor": ("jinja2",),
    "check": (),
    "bench": ("rich", *DRAWING),
    "report": DRAWING,
    "analyze": ("rich", *DRAWING),
    "score": (),
    "tune": ("rich", "jinja2"),
    "list": (),
    "serve": ("jinja2", "fastapi", "starlette", "uvicorn", "openai"),  # what transformers' own server needs
    "demo": ("jinja2", "gradio"),
}
OWN_EXTRA = {"serve": "serve", "demo": "demo"}  # of commands whose packages are not in `EXTRA`
SHELL = ("typer",)  # of all commands
# What only some data needs, and the extra that has it: asked for when such data is opened, before a model runs.
DATA = {"datasets": EXTRA, "pyarrow": EXTRA, "fsspec": EXTRA, "av": "video"}
STUDIES = {"sklearn": "analyze"}  # what only some studies of `vlmprune analyze` need
ENGINES = {
    "ray": "ray",
    "lmms_eval": "lmms",
    "vllm": "vllm",
}  # what other engines than our own loop need, and the extra that has it


def check_packages(command: str) -> None:
    """Raise UserError unless every package that a command will need can be imported."""
    if missing := [name for name in PACKAGES[command] if not is_there(name)]:
        raise UserError(f"vlmprune {command} {needs(missing, OWN_EXTRA.get(command, EXTRA))}")


def load_package(name: str, what: str = "This data") -> Any:
    """A module of a package in `DATA`, `STUDIES` or `ENGINES`.

    Args:
        what: needs it, as the error begins.

    Raises:
        UserError: it is not installed.
    """
    try:
        return import_module(name)
    except ImportError:
        package = name.partition(".")[0]
        raise UserError(f"{what} {needs([package], (DATA | STUDIES | ENGINES)[package])}") from None


def needs(missing: list[str] | tuple[str, ...], extra: str = EXTRA) -> str:
    """The end of the sentence that says which packages are missing, and how to get them."""
    return f"needs {' and '.join(missing)}: pip install 'vlmprune[{extra}]', or '.[{extra}]' in a clone."


def is_there(name: str) -> bool:
    """Whether a package can be imported. Looking for it is not enough: an installed package may be broken."""
    try:
        import_module(name)
    except ImportError:
        return False
    return True
