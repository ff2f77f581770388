"""ApET's steps: tokens as combinations of a few basis tokens, and merging of the others into the kept ones."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def first(rows: Tensor) -> Tensor:
    """[] the row farthest from the mean of rows [n, C]."""
    return (rows - rows.mean(0)).square().sum(1).argmax()


def unexplained(rows: Tensor, basis: Tensor, ridge: float) -> Tensor:
    """[n] how far each of `rows` [n, C] is from the nearest combination of `basis` [k, C] (ridge regression).

    Errors are rounded to 2^-18 of the largest: equal tokens (an image's padding) then tie, in whatever order their
    features were summed up.
    """
    wide = basis.double()  # a basis of nearly equal rows, and of large ones beside a small ridge
    gram = wide @ wide.T + ridge * torch.eye(len(wide), dtype=wide.dtype, device=wide.device)
    weights = torch.linalg.solve_ex(gram, wide @ rows.double().T).result
    errors = (rows - weights.T.to(rows.dtype) @ basis).norm(dim=1)
    step = errors.nan_to_num(0.0, posinf=0.0).amax() * 2**-18
    return torch.where(step > 0, (errors / step).round() * step, errors)


def most_similar(rows: Tensor, heads: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """The tokens that are not `kept` [d], and the number of the head [d] that is most similar to each."""
    dropped = torch.isin(torch.arange(len(rows), device=kept.device), kept, invert=True).nonzero().squeeze(1)
    unit = nn.functional.normalize(rows, dim=1)
    return dropped, (unit[dropped] @ unit[heads].T).argmax(1)


def joined(rows: Tensor, heads: Tensor, dropped: Tensor, into: Tensor) -> Tensor:
    """[h, C] the mean of each head and the `dropped` tokens that go into it."""
    # sums by a product with 0/1 weights: a scattered sum would depend on the order of threads on a GPU
    joins = (into == torch.arange(len(heads), device=heads.device)[:, None]).to(rows.dtype)
    return (rows[heads] + joins @ rows[dropped]) / (1 + joins.sum(1, keepdim=True))
