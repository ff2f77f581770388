"""OTPrune."""

from __future__ import annotations

import pytest
import torch
from harness_views import KINDS, LLAVA, NEXT, QWEN, check_picks, image, of_tensors, picked, values
from torch import Tensor

from vlmprune.core.errors import UserError
from vlmprune.methods.vision.otprune import OTPrune


def greedy(features: Tensor, keep: int, gamma: float) -> list[int]:
    """The definition: at each step the token that makes the determinant of L on the picks largest."""
    x = features.double() / features.double().norm(dim=0)
    similar = x @ x.T
    kernel = torch.eye(len(x), dtype=torch.double) + gamma * similar @ similar.T
    picks: list[int] = []
    for _ in range(keep):
        free = [i for i in range(len(x)) if i not in picks]
        volumes = [float(torch.logdet(kernel[[*picks, i]][:, [*picks, i]])) for i in free]
        picks.append(free[volumes.index(max(volumes))])
    return picks


class TestOTPrune:
    @pytest.mark.parametrize("gamma", [0.01, 2.0])
    @pytest.mark.parametrize(("n", "width"), [(30, 12), (12, 30), (20, 20), (2, 3)])
    def test_it_is_the_definition_whichever_side_is_larger(self, gamma: float, n: int, width: int) -> None:
        features, keep = values("noise", n, width, seed=n), max(1, n // 3)
        view = of_tensors(keep, None, features=features)
        expected = greedy(features, keep, gamma)
        assert OTPrune(gamma=gamma).picks(view).tolist() == expected
        assert picked(OTPrune(gamma=gamma), view).tolist() == sorted(expected)

    def test_a_channel_counts_the_same_whatever_its_scale(self) -> None:
        features = values("noise", 40, 12)
        loud = features.clone()
        loud[:, 3] *= 1000
        kept = [picked(OTPrune(), of_tensors(9, None, features=one)) for one in (features, loud)]
        assert torch.equal(*kept)

    def test_a_tiny_gamma_still_decides(self) -> None:
        """In the authors' float32 all of L's diagonal is 1 then."""
        features = values("noise", 40, 12)
        order = OTPrune(gamma=1e-12).picks(of_tensors(5, None, features=features)).tolist()
        x = features / features.norm(dim=0)
        assert order == (x @ x.T).norm(dim=1).topk(5).indices.tolist()

    def test_scale_free_weighs_by_tokens_and_channels(self) -> None:
        features = values("noise", 48, 12)
        view = of_tensors(15, None, features=features)
        assert OTPrune(scale_free=True).picks(view).tolist() == greedy(features, 15, 0.01 * 16)

    def test_dead_channels_add_nothing_and_constant_features_go_by_index(self) -> None:
        features = torch.cat([values("noise", 30, 8), torch.zeros(30, 3)], dim=1)
        alive = of_tensors(9, None, features=features[:, :8])
        assert torch.equal(OTPrune().picks(of_tensors(9, None, features=features)), OTPrune().picks(alive))
        constant = of_tensors(5, None, features=torch.ones(16, 4))
        assert OTPrune().picks(constant).tolist() == [0, 1, 2, 3, 4]

    def test_of_two_equal_tokens_the_second_loses_by_the_first(self) -> None:
        features = torch.eye(4).repeat_interleave(2, 0) * torch.tensor([4.0, 3, 2, 1]).repeat_interleave(2)[:, None]
        order = OTPrune(gamma=100.0).picks(of_tensors(4, None, features=features)).tolist()
        assert order == [0, 2, 4, 6]

    @pytest.mark.parametrize(("n", "width"), [(34, 32), (51, 16), (67, 100), (130, 40)])
    def test_equal_tokens_go_by_index_however_a_product_rounds(self, n: int, width: int) -> None:
        alike = values("noise", 1, width).repeat(n, 1)
        for keep in (1, 10, n - 1):
            assert OTPrune().picks(of_tensors(keep, None, features=alike)).tolist() == list(range(keep))

    @pytest.mark.parametrize("kind", KINDS)
    def test_whatever_the_numbers_the_budget_is_exact(self, kind: str) -> None:
        for keep in (1, 30, 59):
            for info in (LLAVA, QWEN):
                check_picks(picked(OTPrune(), image(OTPrune(), 60, keep, kind, info=info)), keep, 60)

    def test_all_slots_of_an_image_compete(self) -> None:
        assert OTPrune().sees_every_slot(NEXT) and OTPrune().pool(NEXT) == "image"

    def test_values_that_are_not_allowed_are_refused(self) -> None:
        for options in ({"gamma": 0.0}, {"scale_free": 1}):
            with pytest.raises(UserError, match="otprune"):
                OTPrune(**options)  # type: ignore[arg-type]
