"""Prune-Aware Fusion: just before a cut, make the tokens that stay attend more to some of those that will go."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Fusion:
    """An edit of a layer's attention logits A [queries, keys] before softmax, from Hi-Lo Prune (CVPR 2026).

    Candidates are tokens that will be removed. For a query that is not a candidate, A becomes A + strength * A at those
    candidates that get more than `threshold` of the query's attention and are among its ceil(top_share * F) largest
    logits over the F candidates of the same image.

    Attributes:
        strength: 0 changes nothing.
        threshold: the share of a query's attention that a candidate must exceed.
        top_share: the share of an image's candidates that may be raised.
        threshold_over: "row": the share is of the attention to all keys that the query sees; "candidates": of that to
            candidates only.
        positive_only: leave negative logits alone, which the formula would lower.
    """

    strength: float
    threshold: float
    top_share: float = 0.1
    threshold_over: str = "row"
    positive_only: bool = False


def layers_before(cut: int) -> range:
    """The decoder layers in which attention is edited for the cut before layer `cut`: the last two."""
    return range(max(0, cut - 2), cut)
