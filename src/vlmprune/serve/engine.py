"""Which engine serves."""

from __future__ import annotations

from importlib.util import find_spec

from vlmprune.core.errors import Option, UserError
from vlmprune.core.extras import ENGINES as PACKAGES
from vlmprune.core.extras import needs

TRANSFORMERS, VLLM = ENGINES = ("transformers", "vllm")


def choose_engine(name: str | None = None) -> str:
    """The engine of that name; without one vLLM where it is installed, or else transformers.

    Raises:
        UserError: there is none of that name, or it is not installed.
    """
    others = ("give ", Option("engine", TRANSFORMERS))
    if name is not None and name not in ENGINES:
        raise UserError(Option("engine", name), " is not there: ", *others, " or ", Option("engine", VLLM), ".")
    there = find_spec(VLLM) is not None
    if name == VLLM and not there:
        how = needs([VLLM], PACKAGES[VLLM]).rstrip(".")
        raise UserError(Option("engine", VLLM), f" {how}; without a GPU, ", *others, ".")
    return name or (VLLM if there else TRANSFORMERS)
