"""Relevance to the instruction."""

from __future__ import annotations

import torch
from harness_views import WIDTH, values

from vlmprune.core.view import Aligned
from vlmprune.methods.relevance import mean_cosine


def test_the_mean_of_cosines() -> None:
    visual, text = values("noise", 30, WIDTH), values("noise", 5, WIDTH, seed=1)
    expected = torch.cosine_similarity(visual[:, None], text[None], dim=-1).mean(1)
    torch.testing.assert_close(mean_cosine(Aligned(visual, text, True)), expected)
    assert mean_cosine(Aligned(visual, text[:0], True)).tolist() == [0] * 30
    assert mean_cosine(Aligned(visual[:1].repeat(99, 1), text, True)).unique().numel() == 1
