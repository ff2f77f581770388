"""FasterVLM."""

from __future__ import annotations

import torch
from harness_views import (
    LLAVA,
    image,
)

from vlmprune.core.needs import USED
from vlmprune.core.signals import ClsAttention
from vlmprune.methods.vision.fastervlm import FasterVLM


class TestFasterVLM:
    def test_it_keeps_what_the_cls_token_looks_at_and_of_equals_the_first(self) -> None:
        view = image(FasterVLM(), 6, 3)
        view.signals = {"attention": torch.tensor([0.1, 0.3, 0.2, 0.2, 0.2, 0.1])}
        assert FasterVLM().select(view).tolist() == [1, 2, 3]

    def test_it_reads_the_layer_that_is_projected(self) -> None:
        assert FasterVLM().needs(LLAVA) == {"attention": ClsAttention(USED)}
