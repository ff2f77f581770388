"""The loop of greedy max-min diversity as one Triton kernel, which a GPU is sent once for all picks of all sets."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


# The sizes are not specialised: one compiled kernel serves all sizes of one block, so that what was tried is what runs.
@triton.jit(do_not_specialize=["n", "count"])
def _max_min(matrices, farthest, picks, n, count, NUMBER: tl.constexpr, BLOCK: tl.constexpr):
    """One program for each set, which keeps how far each row is from its picks in registers.

    A step loads one row of the matrix [n, n]. Minimum and maximum do not round, so the picks are those of any other
    loop over these distances, none of which is NaN. Rows beyond n are -inf, and as the last they lose every tie.
    """
    own = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < n
    alone = tl.load(farthest + own * n + at, mask=inside, other=float("-inf")).to(NUMBER)
    pick = tl.argmax(alone, 0, tie_break_left=True)
    tl.store(picks + own * count, pick.to(tl.int64))
    nearest = tl.full([BLOCK], float("inf"), NUMBER)
    for step in range(1, count):
        row = matrices + (own * n + pick) * n + at
        nearest = tl.minimum(nearest, tl.load(row, mask=inside, other=float("-inf")).to(NUMBER))
        pick = tl.argmax(nearest, 0, tie_break_left=True)
        tl.store(picks + own * count + step, pick.to(tl.int64))


def block_of(n: int) -> int:
    """How many numbers a program holds for a set of n rows."""
    return max(32, triton.next_power_of_2(n))


def warps_of(block: int) -> int:
    """Eight numbers for each thread, and more where a program on an AMD GPU would need more than its 1024 threads."""
    return max(1, min(16, block // 256))


def picks_of_each(matrices: Tensor, farthest: Tensor, count: int, block: int) -> Tensor:
    """The greedy orders [B, count] of sets with distances [B, n, n], as `max_min.in_steps` finds them.

    Args:
        farthest: [B, n] how far the nearest other row is.
        block: `block_of(n)`, or a larger one.
    """
    picks = torch.empty(len(matrices), count, dtype=torch.long, device=matrices.device)
    with torch.cuda.device_of(matrices):  # Triton launches on the current GPU, wherever its arguments are
        _max_min[(len(matrices),)](
            matrices.contiguous(), farthest.contiguous(), picks, matrices.shape[1], count,
            NUMBER=tl.float64 if matrices.dtype == torch.float64 else tl.float32, BLOCK=block,
            num_warps=warps_of(block),
        )  # fmt: skip
    return picks
