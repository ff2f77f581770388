"""ToMe."""

from __future__ import annotations

import torch
from harness_views import (
    KINDS,
    WIDTH,
    merged_by,
    of_tensors,
    values,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmprune.methods.matching import match
from vlmprune.methods.vision.tome import ToMe


class TestToMe:
    def test_the_most_similar_pair_goes_first(self) -> None:
        x = torch.eye(WIDTH)[:6] * torch.arange(1.0, 7)[:, None]
        x[4] = x[1] * 2  # token 4 (of the first set) looks like token 1 (of the second)
        merged = merged_by(ToMe(), of_tensors(5, None, features=x))
        assert merged.anchors.tolist() == [0, 1, 2, 3, 5]
        assert torch.equal(merged.features[1], (x[1] + x[4]) / 2)
        assert torch.equal(merged.features[[0, 2, 3, 4]], x[[0, 2, 3, 5]])

    @given(n=st.integers(2, 40), data=st.data())
    @settings(max_examples=60, deadline=None)
    def test_a_step_loses_no_token(self, n: int, data: st.DataObject) -> None:
        r, cls = data.draw(st.integers(0, n)), data.draw(st.booleans())
        x = values(data.draw(st.sampled_from(KINDS)), n, WIDTH).double()
        step = match(x, r, cls)
        assert sorted([*step.stay.tolist(), *step.leave.tolist()]) == list(range(n))
        assert len(step.leave) == min(r, (n - cls) // 2)
        assert not cls or step.stay[0] == 0
        sizes = torch.arange(1.0, n + 1).double()
        rows, total = step.merge(x, sizes)
        assert float(total.sum()) == float(sizes.sum())
        torch.testing.assert_close((rows * total[:, None]).sum(0), (x * sizes[:, None]).sum(0))

    def test_a_chain_is_a_mean_over_all_that_it_merged(self) -> None:
        x = values("noise", 4, WIDTH).repeat_interleave(8, 0) + 0.01 * values("noise", 32, WIDTH, seed=1)
        merged, plain = (merged_by(ToMe(weighted=w), of_tensors(4, None, features=x)) for w in (True, False))
        assert merged.anchors.tolist() == plain.anchors.tolist() == [0, 8, 16, 24]
        torch.testing.assert_close(merged.features, x.view(4, 8, WIDTH).mean(1))
        assert not torch.allclose(plain.features, merged.features)

    def test_the_authors_order_is_the_first_set_then_the_second(self) -> None:
        view = of_tensors(5, None, features=values("noise", 8, WIDTH))
        merged = merged_by(ToMe(order="matching"), view)
        step = match(view["features"], 3)
        assert torch.equal(merged.features, step.merge(view["features"], torch.ones(8))[0])
        assert step.stay.tolist()[1:] == [1, 3, 5, 7] and step.stay[0] % 2 == 0
        ordered = merged_by(ToMe(), view)
        assert torch.equal(ordered.features, merged.features[merged.anchors.argsort()])
