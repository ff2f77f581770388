"""Checks of what a method says of itself, without a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vlmprune.core.plan import acts_of
from vlmprune.core.shape import Load, Shape
from vlmprune.core.view import ModelInfo
from vlmprune.testing.check import Failed, Noted, check
from vlmprune.testing.docstrings import HEADINGS, cost, told

if TYPE_CHECKING:
    from vlmprune.core.method import Method

# LLaVA-1.5-7B, whose decoder is deep enough for every layer that papers name.
LLAVA = Shape(
    "llava", encoder_layers=24, encoder_width=1024, encoder_mlp=4096, encoder_gated=False, encoder_heads=16,
    has_cls=True, window=0, full_layers=24, patch_inputs=588, merge=1, projector=1024 * 4096 + 4096**2, layers=32,
    width=4096, mlp=11008, q_width=4096, kv_width=4096, vocabulary=32064,
)  # fmt: skip
QWEN = ModelInfo("qwen2_5_vl", encoder_layers=32, decoder_layers=28, has_cls=False)


@check("the docstring has Paper, Formula, Defaults, every option under Args, and its cost", of="text")
def docstring(method: Method) -> None:
    cls = type(method)
    for heading in HEADINGS:
        if heading not in (cls.__doc__ or ""):
            raise Failed(f"expected {heading!r} in the docstring of {cls.__name__}, but it is missing")
    if not method.summary or "\n" in method.summary:
        raise Failed(f"expected one line as `summary` of {cls.__name__}, but it is {method.summary!r}")
    try:
        cost(cls)
        told(cls)
    except ValueError as error:
        raise Failed(f"expected a complete docstring, but {error}") from error


@check("every signal that is read says what it costs", of="text")
def cost_stated(method: Method) -> None:
    load = Load(LLAVA, slots=576, present=576, text=64)
    for info in (LLAVA.info, QWEN):
        for act in acts_of(method, 0.5, info):
            for name, need in act.needs.items():
                counted = need.flops(load)
                if counted is None:
                    raise Noted(f"the cost of the signal {name!r} is not counted, so tables show a dash (`Need.flops`)")
                if not isinstance(counted, int | float):
                    raise Failed(f"expected a number of operations or None from {name!r}.flops, but got {counted!r}")
