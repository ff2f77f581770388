"""Whether a block of code makes the host wait for a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def never_waiting(device: str = "cuda") -> Iterator[None]:
    """In the block, an operation for which PyTorch waits for a GPU is an error; on other devices nothing is checked.

    Raises:
        RuntimeError: PyTorch's, which names the operation.
    """
    if device != "cuda":
        yield
        return
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)
