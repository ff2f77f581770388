"""Prune-Aware Fusion: let the tokens that stay look at some of those that will be removed, just before they are."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Fusion:
    """An edit of the attention logits A [queries, keys] of a layer, as softmax sees them, by Hi-Lo Prune (CVPR 2026).

    A query that is not a candidate sees A + strength * A at those candidates that hold more than `threshold` of it and
    are among its ceil(top_share * F) largest logits over the F candidates of the same image.

    Attributes:
        strength: 0 changes nothing.
        threshold: share of a query's attention.
        top_share: of an image's candidates.
        threshold_over: "row": the share is of all that the query sees; "candidates": of the candidates it sees.
        positive_only: leave negative logits alone, which the formula lowers.
    """

    strength: float
    threshold: float
    top_share: float = 0.1
    threshold_over: str = "row"
    positive_only: bool = False


def layers_before(cut: int) -> range:
    """The decoder layers in which attention is edited for the cut before layer `cut`: the last two."""
    return range(max(0, cut - 2), cut)
