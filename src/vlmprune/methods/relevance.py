"""The relevance of tokens to the instruction, from `Alignment` or from attention."""

from __future__ import annotations

from torch import Tensor, nn

from vlmprune.author import Aligned

EPS = 1e-10  # added to attention inside a logarithm


def mean_cosine(aligned: Aligned) -> Tensor:
    """The mean cosine of each token with the rows of the text, [n]; 0 without text."""
    text = nn.functional.normalize(aligned.text.float(), dim=1)
    # The mean of cosines is the product with the mean direction. Summed row by row: equal tokens get equal values,
    # which a matrix product does not promise.
    visual = nn.functional.normalize(aligned.visual.float(), dim=1)
    return (visual * (text.sum(0) / max(1, len(text)))).sum(1).nan_to_num()


def sign_of(chosen: int | None, aligned: Aligned) -> int:
    """The sign of relevance: as chosen, or as the towers say it.

    Of a CLIP that does not say it, -1: in OpenAI's, patches point away from text that describes them.
    """
    return chosen or aligned.sign or (-1 if aligned.clip else 1)


def excess(task: Tensor, prior: Tensor) -> Tensor:
    """[n] each token's part of the divergence of `task` [n] from `prior` [n], both with sum 1."""
    return task * ((task + EPS) / (prior + EPS)).log()
