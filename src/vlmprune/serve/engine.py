"""Which engine serves."""

from __future__ import annotations

from importlib.util import find_spec

from vlmprune.core.errors import Option, UserError

TRANSFORMERS, VLLM = ENGINES = ("transformers", "vllm")


def choose_engine(name: str | None = None) -> str:
    """The engine of that name; without one vLLM where it is installed, or else transformers.

    Raises:
        UserError: there is none of that name, or it is not installed.
    """
    if name is not None and name not in ENGINES:
        raise UserError(
            Option("engine", name),
            " is not there: give ",
            Option("engine", TRANSFORMERS),
            " or ",
            Option("engine", VLLM),
            ".",
        )
    there = find_spec(VLLM) is not None
    if name == VLLM and not there:
        raise UserError(
            "vLLM is not installed: pip install 'vlmprune[vllm]' on a machine with a GPU, or give ",
            Option("engine", TRANSFORMERS), ".",
        )  # fmt: skip
    return name or (VLLM if there else TRANSFORMERS)
