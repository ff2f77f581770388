"""What is described as float32 is computed in it, also where the model runs under `torch.autocast`."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch


def unrounded(device: torch.device) -> AbstractContextManager[object]:
    """An autocast around the model does not round the products of a block of code."""
    if not torch.amp.is_autocast_available(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)
