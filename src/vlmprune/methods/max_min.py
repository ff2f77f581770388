"""The loop of greedy max-min diversity over all distances: in numpy, in steps of torch, or as one Triton kernel."""

from __future__ import annotations

import functools
import logging
from typing import Any

import numpy as np
import torch
from torch import Tensor


def picks_here(matrix: Tensor, farthest: Tensor, count: int) -> Tensor:
    """`in_steps` of one set on a CPU, where a step in numpy takes a third of the time that its calls of torch take."""
    distances, first = _numbers(matrix), _numbers(farthest)
    picks, nearest = [first.argmax()], np.full_like(first, np.inf)
    while len(picks) < count:
        picks.append(np.minimum(nearest, distances[picks[-1]], out=nearest).argmax())
    return torch.from_numpy(np.array(picks))


def picks_there(matrices: Tensor, farthest: Tensor, count: int) -> Tensor:
    """`in_steps` on a GPU, by the way that is `chosen`."""
    if chosen(matrices) == "triton":
        kernel = _kernel()
        return kernel.picks_of_each(matrices, farthest, count, kernel.block_of(matrices.shape[1]))
    return in_steps(matrices, farthest, count)


def in_steps(matrices: Tensor, farthest: Tensor, count: int) -> Tensor:
    """The greedy orders of sets with these distances [B, n, n], without reading a number.

    Args:
        farthest: [B, n] how far the nearest other row is.

    Returns:
        [B, count].
    """
    picks = [farthest.argmax(1, keepdim=True)]
    nearest = torch.full_like(farthest, torch.inf)
    while len(picks) < count:
        row = matrices.gather(1, picks[-1][:, :, None].expand(-1, 1, matrices.shape[2]))[:, 0]
        picks.append(torch.minimum(nearest, row, out=nearest).argmax(1, keepdim=True))
    return torch.cat(picks, 1)


def chosen(matrices: Tensor) -> str:
    """ "triton" or "torch": what `picks_there` does with matrices of this device, precision and size."""
    kernel = _kernel() if matrices.is_cuda else None
    applies = kernel is not None and _proven(matrices.device, matrices.dtype, kernel.block_of(matrices.shape[1]))
    return "triton" if applies else "torch"


@functools.cache
def _kernel() -> Any:
    """The module of the kernel, or None without Triton."""
    try:
        from vlmprune.methods import max_min_kernel
    except ImportError:
        return None
    return max_min_kernel


@functools.cache
def _proven(device: torch.device, dtype: torch.dtype, block: int) -> bool:
    """Whether the kernel compiles here for blocks of this size, and picks what torch picks of a small example."""
    draw = torch.Generator().manual_seed(0)
    matrices = torch.rand(2, 45, 45, generator=draw).mul_(9).floor_().to(device, dtype)  # with many ties
    farthest = matrices.amin(2)
    matrices.diagonal(dim1=1, dim2=2).fill_(-torch.inf)
    try:
        if not torch.equal(_kernel().picks_of_each(matrices, farthest, 40, block), in_steps(matrices, farthest, 40)):
            raise ArithmeticError("it picks otherwise than torch")
    except Exception as error:
        logging.getLogger("vlmprune").warning(
            "Diverse tokens are picked step by step by torch, as Triton's kernel does not work here: %s", error
        )
        return False
    return True


def _numbers(values: Tensor) -> np.ndarray:
    """Half precision as float32, which numpy has for all of it, and which holds the same numbers."""
    return (values.float() if values.element_size() < 4 else values).numpy()
