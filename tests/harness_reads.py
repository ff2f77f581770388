"""Counts what would make the host of a GPU wait."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

READS = ("_local_scalar_dense", "is_nonzero", "equal", "masked_select", "nonzero", "_unique2", "unique_dim", "bincount")


class Reads(TorchDispatchMode):
    """Counts operations of which the host must know the result, or its size, before it goes on."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        places = args[1] if name in ("index", "index_put_") else ()
        if any(part is not None and part.dtype == torch.bool for part in places):
            self.found[f"{name} by a mask"] += 1
        elif name in READS:
            self.found[name] += 1
        return func(*args, **kwargs or {})
