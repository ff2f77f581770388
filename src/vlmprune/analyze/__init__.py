"""Studies of where a vision encoder and a language model look: `vlmprune analyze`.

    vlmprune analyze attention llava
    vlmprune analyze all openai/clip-vit-large-patch14-336 --images DIR

Each study gives figures, tables and a paragraph of what it shows. The statistics are those that pruning methods read.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from vlmprune.core.errors import UserError

if TYPE_CHECKING:
    from vlmprune.analyze.study import Study

ALL = "all"
# Each is a function of the module of the same name.
STUDIES = ("attention", "dispersion", "objects", "redundancy", "decoder", "rankings", "ablations")


def get_study(name: str) -> Study:
    """The study of that name.

    Raises:
        UserError: there is none.
    """
    if name not in STUDIES:
        raise UserError(f"There is no study {name!r}: choose one of {', '.join(STUDIES)}, or {ALL}.")
    return getattr(import_module(f"vlmprune.analyze.{name}"), name)
