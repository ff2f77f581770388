"""Compiles the kernel of `methods.max_min_kernel` for GPUs that are not here: for `python`, without the interpreter.

It prints a line for each that it made: the kind of numbers, how many of them, and the GPU.
"""

from __future__ import annotations

import itertools

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from vlmprune.methods.max_min_kernel import _max_min, warps_of

TARGETS = [GPUTarget("cuda", 80, 32), GPUTarget("cuda", 90, 32), GPUTarget("hip", "gfx942", 64)]
BLOCKS = [("fp32", 32), ("fp32", 1024), ("fp32", 16384), ("fp16", 32768), ("bf16", 32768), ("fp64", 16384)]


def compiled(kind: str, block: int, target: GPUTarget) -> bytes:
    types = {"matrices": f"*{kind}", "farthest": f"*{kind}", "picks": "*i64", "n": "i32", "count": "i32"}
    fixed = {"NUMBER": tl.float64 if kind == "fp64" else tl.float32, "BLOCK": block}
    source = ASTSource(_max_min, types | dict.fromkeys(fixed, "constexpr"), fixed)
    made = triton.compile(source, target, {"num_warps": warps_of(block)})
    return made.asm["cubin" if target.backend == "cuda" else "hsaco"]


if __name__ == "__main__":
    for target, (kind, block) in itertools.product(TARGETS, BLOCKS):
        assert compiled(kind, block, target)
        print(kind, block, target.arch, flush=True)
