"""AutoPrune's numbers: mutual information of a block of attention, and the curve of how much each layer keeps."""

from __future__ import annotations

import math

import torch
from torch import Tensor

DEPTH = 32  # layers of the authors' model
X0 = 14.9  # its layer where the curve falls fastest
START = 0.75  # height of the curve before it is scaled


def mutual_information(attention: Tensor) -> Tensor:
    """Mutual information of text and image tokens in bits, for each head: [H, T, n] to [H].

    Every text token counts 1/T. A row is the attention that it pays to the image's tokens, which need not sum to 1.
    """
    if attention.shape[-2] == 0:
        return attention.new_zeros(attention.shape[0])
    each = 1 / attention.shape[-2]
    joint = each * attention
    apart = each * joint.sum(-2, keepdim=True)
    return (joint * torch.log2((joint / (apart + 1e-6)).clamp(min=1e-6))).sum((-2, -1))


def keep_shares(
    steepness: float, target: int, first: int, tokens: int, depth: int, x0: float | None = None
) -> list[float]:
    """What layers 1, 2, ... keep, as shares of the `first` tokens (of the image's `tokens`) that layer 0 passed on.

    A logistic curve around layer x0 + steepness. It is scaled by bisection until the layers, with `first` for layer 0,
    pass on `target` tokens on average, recycled ones included (`simulated`). A share above 1 means that all stay.

    Args:
        x0: by default the authors' for 32 layers or more; a layer of a shallower decoder counts as the layer at the
            same depth of 32.
    """
    stretch = max(1.0, DEPTH / depth) if x0 is None else 1.0
    middle = (X0 if x0 is None else x0) + steepness
    base = [START / (1 + math.exp(steepness * (layer * stretch - middle))) for layer in range(1, depth)]
    goal = depth * target
    counts = [int(first * share) for share in base]
    if abs(sum(counts) + counts[-1] - goal) < 1:  # the authors' first guess
        return base
    low, high, best, least = 0.0, 20.0, 1.0, math.inf
    for _ in range(200):
        scale = (low + high) / 2
        off = simulated([scale * share for share in base], first, tokens) - goal
        if abs(off) < least:
            best, least = scale, abs(off)
        if off == 0:
            break
        low, high = (low, scale) if off > 0 else (scale, high)
    return [best * share for share in base]


def keep_counts(
    steepness: float, target: int, first: int, tokens: int, depth: int, x0: float | None = None
) -> list[int]:
    """The same as numbers of tokens."""
    return [math.ceil((first - 1) * share) for share in keep_shares(steepness, target, first, tokens, depth, x0)]


def simulated(shares: list[float], first: int, tokens: int) -> int:
    """Sum of the tokens that all layers pass on: `first` for layer 0, and what each other layer keeps and recycles."""
    now = total = first
    for share in shares:
        kept = min(math.ceil((first - 1) * min(1.0, share)), tokens)
        recycled = int(0.3 * (now - kept)) + 1
        now = kept + (0 if now == kept else min(recycled // 10 + 1, recycled))
        total += now
    return total
