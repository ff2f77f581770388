"""Which methods the tests on models run, and by what they differ: asked of the methods, so that new ones are in."""

from __future__ import annotations

from collections.abc import Sequence

from harness import runnable

import vlmprune
from vlmprune.core.act import Act
from vlmprune.core.method import Method, PixelMethod
from vlmprune.core.plan import acts_of
from vlmprune.core.recipe import format_method
from vlmprune.core.roles import Fusing
from vlmprune.core.view import Grid, ModelInfo
from vlmprune.models import adapter_for
from vlmprune.testing import FAMILIES

METHODS = [name for name in vlmprune.METHODS if not issubclass(vlmprune.METHODS[name], PixelMethod)]
RECURRENT = ModelInfo("qwen3_5", 24, 32, has_cls=False, attention_layers=tuple(range(3, 32, 4)))


def cutting(name: str) -> Method:
    """The method without an edit of attention before the cut: the oracle of that is in test_fusion.py."""
    method = vlmprune.METHODS[name]()
    return method.unfused() if isinstance(method, Fusing) else method


def left(acts: Sequence[Act], n: int, grid: Grid | None = None, video: bool = False) -> int:
    """Of an image's (or video's) `n` tokens those that its budget leaves after all acts of an exact method."""
    total = n
    for act in acts:
        n = min(n, act.of(total, grid, video).budget(n, total))
    return n


def places(name: str, keep: float) -> list[int | None]:
    """The decoder layers before which the method acts under a budget, None for before the LLM, on LLaVA-1.5."""
    return [act.layer for act in acts_of(cutting(name), keep, ModelInfo("llava", 24, 32, has_cls=True))]


def _refuses(method: Method) -> bool:
    try:
        acts_of(method, 0.3, RECURRENT)
    except vlmprune.UserError:
        return True
    return False


def _cuts_late(method: Method, key: str) -> bool:
    """Whether it acts behind the last layer before which the family's tokens may be cut."""
    last = FAMILIES[key].cut_up_to
    if last is None:
        return False
    acts = acts_of(method, 0.3, adapter_for(FAMILIES[key].build("sdpa")).info)
    return any(act.layer is not None and act.layer > last for act in acts)


# Methods that read attention where recurrent layers have none.
UNREADABLE = [
    (name, key) for key, family in FAMILIES.items() if family.recurrent for name in METHODS if _refuses(cutting(name))
]
# Methods that read an encoder where there is none.
BLIND = [
    (name, key) for key in FAMILIES for name in METHODS if not runnable(key, [f"{format_method(cutting(name))}:0.3"])
]
# Methods that cut where later layers have stored keys to be read by others.
TOO_LATE = [(name, key) for key in FAMILIES for name in METHODS if _cuts_late(cutting(name), key)]
REFUSED = [*UNREADABLE, *BLIND, *TOO_LATE]
