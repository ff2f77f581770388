"""VisPruner."""

from __future__ import annotations

import pytest
import torch
from harness_views import (
    image,
    values,
)

from vlmprune.core.errors import UserError
from vlmprune.core.selectors import top_k
from vlmprune.core.view import ImageView, TowerRows
from vlmprune.methods.vision.vispruner import VisPruner


class TestVisPruner:
    def naive(self, view: ImageView, important: float) -> list[int]:
        """The definition, with lists."""
        order = top_k(view["attention"], view.n).tolist()
        count = int(view.keep * important)
        kept, rest = order[:count], order[count:]
        unit = torch.nn.functional.normalize(view["rows"].rows, dim=-1)
        likeness = unit @ unit.T
        while len(rest) > view.keep - count:
            a, b = rest[::2], rest[1::2]
            near = {i: float(likeness[i, torch.tensor(b)].max()) for i in a}
            likest = sorted(a, key=lambda i: -near[i])
            rest = likest[min(8, len(rest) - (view.keep - count)) :] + b
        return sorted(kept + rest)

    @pytest.mark.parametrize("important", [0.0, 0.3, 0.5, 0.9])
    @pytest.mark.parametrize(("n", "keep"), [(576, 64), (61, 13), (60, 59), (9, 1), (25, 2), (17, 3)])
    def test_it_is_the_definition(self, important: float, n: int, keep: int) -> None:
        view = image(VisPruner(), n, keep, seed=n)
        assert VisPruner(important=important).select(view).tolist() == self.naive(view, important)

    @pytest.mark.parametrize("kind", ["noise", "ties", "duplicates", "constant"])
    def test_the_length_of_the_lists_of_near_tokens_does_not_matter(
        self, kind: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        view = image(VisPruner(), 200, 30, kind)
        parts = VisPruner().parts(view)
        monkeypatch.setattr("vlmprune.methods.vision.vispruner.NEAR", 2)
        assert all(torch.equal(a, b) for a, b in zip(parts, VisPruner().parts(view), strict=True))

    def test_of_two_copies_one_goes(self) -> None:
        view = image(VisPruner(), 16, 8, seed=1)
        rows = values("noise", 16, 64)
        order = top_k(view["attention"], 16)
        rows[order[1::2]] = rows[order[::2]]  # neighbours by attention are copies of each other
        view.signals = {**view.signals, "rows": TowerRows(rows, None)}
        assert VisPruner(important=0.0).select(view).tolist() == sorted(order[1::2].tolist())

    @pytest.mark.parametrize(("n", "keep"), [(577, 64), (576, 1), (576, 2)])
    def test_official_refuses_what_the_authors_code_cannot_do(self, n: int, keep: int) -> None:
        view = image(VisPruner(), n, keep)
        assert len(VisPruner().select(view)) == keep
        with pytest.raises(UserError, match="the authors' code fails"):
            VisPruner(compat="official").select(view)
