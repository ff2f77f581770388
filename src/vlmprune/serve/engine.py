"""Which engine serves."""

from __future__ import annotations

from importlib.util import find_spec

from vlmprune.core.errors import Option, UserError

TRANSFORMERS, VLLM = ENGINES = ("transformers", "vllm")


def choose_engine(name: str | None = None) -> str:
    """The engine of that name; without one vLLM where it is installed, or else transformers.

    Raises:
        UserError: there is none of that name, or it cannot serve yet.
    """
    if name is not None and name not in ENGINES:
        raise UserError(Option("engine", name), " is not there: give ", Option("engine", TRANSFORMERS), ".")
    chosen = name or (VLLM if find_spec("vllm") is not None else TRANSFORMERS)
    if chosen == VLLM:
        why = "" if name is not None else "vLLM is installed here, but "
        raise UserError(f"{why}vlmprune cannot serve with vLLM yet: give ", Option("engine", TRANSFORMERS), ".")
    return chosen
