"""Density-peak clustering with k nearest neighbours (DPC-kNN), by which SparseVLM and AutoPrune merge tokens."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vlmprune.author import Merged, top_k
from vlmprune.methods.members import owned


class Clusters(NamedTuple):
    """Clusters of n tokens.

    Attributes:
        merged: [c, D] mean of each cluster's tokens.
        centres: [c] the centre token of each cluster, the most prominent first.
        members: [n] the number (0..c-1) of each token's cluster.
    """

    merged: Tensor
    centres: Tensor
    members: Tensor


def cluster_merge(tokens: Tensor, count: int, noise: Tensor | None = None) -> Clusters:
    """Cluster `tokens` [n, D] around `count` of them and merge each cluster into its mean, in float32.

    The most prominent tokens are centres (see `prominences`); every other token joins the nearest centre.

    Source: Du et al., 2016 (DPC-kNN). SparseVLM (arXiv 2410.04417) uses one number for clusters and neighbours.

    Args:
        count: c, the number of clusters and of neighbours; at most n.
        noise: [n] a millionth of it is added to the densities, as the authors do with random numbers to break ties.
            Two tokens may still tie, since float32 often cannot hold the difference. Then neither counts as denser, and
            `torch.topk` decides which of two equally prominent ones comes first, as in the authors' code. Without noise
            the first of two equally dense tokens counts as the denser one.
    """
    tokens, count = tokens.float(), min(count, len(tokens))
    distance, prominence = prominences(tokens, count, noise)
    centres = top_k(prominence, count) if noise is None else prominence.topk(count).indices
    members = distance[:, centres].argmin(1)
    members[centres] = torch.arange(count, device=tokens.device)
    belongs = (members[None] == torch.arange(count, device=tokens.device)[:, None]).float()
    return Clusters(belongs @ tokens / belongs.sum(1, keepdim=True), centres, members)


def prominences(tokens: Tensor, neighbours: int, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """How far tokens [n, D] are from each other, [n, n], and how prominent each is among them, [n].

    Distance d(i, j) = |x_i - x_j| / sqrt(D). Density of i: exp(-mean of d^2 to its nearest `neighbours`, itself
    included). The prominence of a token is its density times its distance to the nearest denser token (the largest of
    all distances, if none is denser).

    Args:
        tokens: float32.
        noise: [n] see `cluster_merge`.
    """
    distance = torch.cdist(tokens, tokens, compute_mode="donot_use_mm_for_euclid_dist") / tokens.shape[1] ** 0.5
    nearest = torch.sort(distance, dim=1).values[:, :neighbours]
    density = (-(nearest**2).mean(1)).exp()
    if noise is not None:
        density = density + 1e-6 * noise.to(density)
    denser = density[None] > density[:, None]  # [i, j]: j is denser than i
    if noise is None:
        denser = denser | (density[None] == density[:, None]).tril(-1)
    separation = distance.masked_fill(~denser, distance.max()).amin(1)
    return distance, density * separation


def recycled(others: int) -> int:
    """How many clusters `recycle` makes of the tokens that are not kept."""
    return (int(0.3 * others) + 1) // 10 + 1


def recycle(states: Tensor, kept: Tensor, relation: Tensor, noise: Tensor | None = None) -> Merged:
    """Kept tokens, followed by clusters of the best of the others (SparseVLM's token recycling).

    Of the d other tokens, the m = int(0.3 d) + 1 with the highest relation are clustered around m // 10 + 1 of them.

    Args:
        states: [n, D] hidden states; kept: [k] tokens in order, k < n; relation: [n].
        noise: see `cluster_merge`.
    """
    others = torch.isin(torch.arange(len(states), device=kept.device), kept, invert=True).nonzero().squeeze(1)
    best = others[top_k(relation[others], int(0.3 * len(others)) + 1)]
    clusters = cluster_merge(states[best], recycled(len(others)), noise)
    anchors = torch.cat([kept, best[clusters.centres]])
    unchanged = torch.arange(len(anchors), device=kept.device) < len(kept)
    members = owned(len(states), kept)
    members[best] = len(kept) + clusters.members
    return Merged(torch.cat([states[kept], clusters.merged]), anchors, unchanged=unchanged, members=members)
