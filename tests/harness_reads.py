"""Counts what would make the host of a GPU wait."""

from __future__ import annotations

import sys
from collections import Counter
from types import FrameType
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

READS = ("_local_scalar_dense", "is_nonzero", "equal", "masked_select", "nonzero", "_unique2", "unique_dim", "bincount")


class Reads(TorchDispatchMode):
    """Counts operations of which the host must know the result, or its size, before it goes on.

    Attributes:
        found: how many of each, by the function of vlmprune or transformers that asked for it ("runtime/flow.py:mask").
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        places = args[1] if name in ("index", "index_put_") else ()
        if name in READS or any(part is not None and part.dtype == torch.bool for part in places):
            self.found[_asking(sys._getframe(1))] += 1
        return func(*args, **kwargs or {})


def _asking(frame: FrameType | None) -> str:
    """The innermost function of vlmprune or transformers; else that of a test."""
    here = frame
    while frame is not None:
        path, name = frame.f_code.co_filename, frame.f_code.co_name
        for package, said in (("/src/vlmprune/", ""), ("/transformers/", "transformers/")):
            if package in path:
                return f"{said}{path.rpartition(package)[2]}:{name}"
        frame = frame.f_back
    return f"{here.f_code.co_filename}:{here.f_code.co_name}" if here else ""
