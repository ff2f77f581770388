"""Contextual tokens: what is left beside the kept (dominant) tokens, merged around evenly spread targets."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from vlmprune.author import ascending
from vlmprune.methods.members import owned


class Clusters(NamedTuple):
    """Row numbers of the tokens that are merged and of those that are not."""

    dominant: Tensor  # [D] kept as they are
    targets: Tensor  # [C] rows that lend their place to a contextual token, ascending
    members: Tensor  # [M - C] rows that are merged, ascending
    assignment: Tensor  # [M - C] the target (0..C-1) that each member joins


def contextual_count(contextual: float, keep: int) -> int:
    """C for a budget of `keep` tokens, of which at least one stays dominant.

    Args:
        contextual: C as a share of the budget (float) or a number of tokens (int).
    """
    wanted = contextual if isinstance(contextual, int) else round(contextual * keep)
    return min(wanted, keep - 1)


def clusters(keys: Tensor, dominant: Tensor, count: int) -> Clusters:
    """Spread `count` targets over the M rows that are not dominant, every (M // count)-th, and assign the others.

    Every other row joins the target with the most similar key (cosine; the first of equal ones, and a zero key is
    similar to nothing). With a count of 0 the rest is dropped.

    Args:
        keys: [N, d].
        dominant: [D] distinct rows, in any order.
    """
    keys = nn.functional.normalize(keys, dim=-1)
    left = torch.ones(keys.shape[0], dtype=torch.bool, device=keys.device)
    left[dominant] = False
    rest = left.nonzero().squeeze(1)
    targets = rest[:: max(1, len(rest) // max(1, count))][:count]
    left[targets] = False
    members = left.nonzero().squeeze(1) if count else rest[:0]
    assignment = (keys[members] @ keys[targets].T).argmax(dim=1) if count else members
    return Clusters(dominant, targets, members, assignment)


def members_of(parts: Clusters, rows: int) -> Tensor:
    """[rows] the new token (dominant ones ascending, then targets) that each row went into, -1 where it was dropped."""
    members = owned(rows, torch.cat([ascending(parts.dominant), parts.targets]))
    members[parts.members] = len(parts.dominant) + parts.assignment
    return members


def contextual_tokens(rows: Tensor, parts: Clusters) -> Tensor:
    """[C, D] each target's row plus the mean of its members' rows [N, D]; a target without members stays as it is."""
    # sums by a product with 0/1 weights: a scattered sum would depend on the order of threads on a GPU
    joined = (parts.assignment == torch.arange(len(parts.targets), device=rows.device)[:, None]).to(rows.dtype)
    return rows[parts.targets] + (joined @ rows[parts.members]) / joined.sum(1, keepdim=True).clamp(min=1)
