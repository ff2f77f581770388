"""Videos frame by frame: which tokens show a frame, and how the frames share a budget."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vlmprune.author import ImageView, top_k
from vlmprune.methods.blocks import fill


def frames_of(view: ImageView) -> list[Tensor]:
    """Token indices of each frame that has some left, in order of time; of an image all tokens, as one frame.

    The tiles of an image are not frames.

    Raises:
        UserError: nobody knows which frame of a video its tokens show.
    """
    if view.act.frames == 1:
        return [torch.arange(view.n, device=view.slots.device)]
    numbers = view.frames
    order = torch.argsort(numbers, stable=True)
    return list(order.split(torch.unique(numbers, return_counts=True)[1].tolist()))


def share_out(keep: int, weights: Tensor, sizes: Sequence[int], least: int, spread: bool = True) -> list[int]:
    """Budgets of frames that add up to `keep`, by weight.

    Each frame first gets `least` tokens, or none where `keep` does not suffice for all; of the rest R it gets
    floor(R w / sum w), and never more than its size. What is then left of `keep` goes to the frames in the order of
    what the floor cut off; ties go to the earlier frame.

    Args:
        weights: [frames], not negative.
        sizes: the tokens of each frame; together at least `keep`.
        spread: whether what is left goes round, one token to each frame (the method of largest remainders), or fills up
            one frame after another.
    """
    counts = [min(least, size) for size in sizes]
    if sum(counts) > keep:
        counts = [0] * len(sizes)
    weights = weights.cpu().double().nan_to_num(0, 0, 0)
    parts = weights / weights.sum() if bool(weights.sum() > 0) else torch.full_like(weights, 1 / len(sizes))
    parts = parts * (keep - sum(counts))
    counts = [min(n + whole, size) for n, whole, size in zip(counts, parts.floor().long().tolist(), sizes, strict=True)]
    order = top_k(parts - parts.floor(), len(sizes)).tolist()
    if spread:
        return fill(counts, sizes, keep, order)
    for frame in order:
        counts[frame] += min(keep - sum(counts), sizes[frame] - counts[frame])
    return counts
