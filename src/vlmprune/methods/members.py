"""Which new token each of an image's tokens went into (`Merged.members`)."""

from __future__ import annotations

import torch
from torch import Tensor


def owned(n: int, anchors: Tensor) -> Tensor:
    """[n] where new tokens are tokens as they were: its own new token, or -1 where it was dropped.

    Args:
        anchors: [m] the tokens that stay, in the order of the new tokens; -1 for a new token that was none of them. Of
            an anchor that stands twice the first counts.
    """
    order = torch.arange(len(anchors), device=anchors.device).flip(0)
    members = torch.full((n + 1,), -1, device=anchors.device)  # the last entry: of new tokens that were none of these
    members[torch.where(anchors >= 0, anchors, n)[order]] = order
    return members[:n]


def mostly(weights: Tensor, anchors: Tensor) -> Tensor:
    """[n] where new tokens are sums with `weights` [m, n]: its own new token, or the one in which it weighs most.

    A token that weighs nothing in any was dropped. `anchors` as for `owned`.
    """
    largest = weights.max(0)
    own = owned(weights.shape[1], anchors)
    return torch.where(own >= 0, own, torch.where(largest.values > 0, largest.indices, -1))
