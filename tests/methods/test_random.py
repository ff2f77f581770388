"""Random choice."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from harness_views import LLAVA, image

from vlmprune.core.errors import UserError
from vlmprune.methods.vision.random import Random


class TestRandom:
    def test_it_draws_every_token_about_equally_often(self) -> None:
        seen: Counter[int] = Counter()
        for seed in range(2000):
            seen.update(Random().select(image(Random(), 20, 5, seed=seed)).tolist())
        # 2000 draws of 5 in 20: 500 each, standard deviation 19.4
        assert all(abs(seen[token] - 500) < 5 * 19.4 for token in range(20))

    def test_the_seed_decides_and_nothing_else(self) -> None:
        first = Random().select(image(Random(), 50, 10, seed=3))
        torch.manual_seed(1)
        assert torch.equal(first, Random(layer=2).select(image(Random(), 50, 10, "constant", seed=3)))
        assert not torch.equal(first, Random().select(image(Random(), 50, 10, seed=4)))

    def test_it_acts_where_it_is_told(self) -> None:
        assert Random().decoder_layer(LLAVA) is None
        assert Random(layer=31).decoder_layer(LLAVA) == 31
        with pytest.raises(UserError, match="layers 0 to 31"):
            Random(layer=32).decoder_layer(LLAVA)
        for wrong in (0, -1, True, 1.5, "2"):
            with pytest.raises(UserError, match="layer="):
                Random(layer=wrong)  # type: ignore[arg-type]
