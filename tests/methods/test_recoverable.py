"""Recoverable Compression."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from harness_text import shown_with_text
from harness_views import LLAVA, WIDTH, merged_by, values
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vlmprune.core.errors import UserError
from vlmprune.core.selectors import top_k
from vlmprune.core.view import Aligned, ImageView, TowerRows
from vlmprune.methods.outliers import local_outliers
from vlmprune.methods.relevance import mean_cosine
from vlmprune.methods.vision import recoverable
from vlmprune.methods.vision.recoverable import Recoverable


class TestRecoverable:
    WIDE = 150  # of the tower's rows, by which the authors' code counts centres

    def view(self, n: int = 200, keep: int = 40, info: Any = LLAVA, clip: bool = True) -> ImageView:
        view = shown_with_text(Recoverable(), clip, n=n, keep=keep, info=info)
        own = {
            "attention": (2 * values("noise", n, seed=4)).softmax(0),
            "rows": TowerRows(values("noise", n, self.WIDE), None),
        }
        return ImageView(keep, view.slots, None, info, {**view.signals, **own})

    def naive(self, view: ImageView, counts: tuple[int, int, int], key_of: Any) -> tuple[list[int], Tensor]:
        seen, asked, count = counts
        attention, rows, keys = view["attention"], view["rows"].rows, view["keys"].rows
        text = mean_cosine(view["aligned"]) / WIDTH**0.5
        by_attention = top_k(attention, view.n).tolist()
        main = by_attention[:seen]
        main += [i for i in top_k(text, view.n).tolist() if i not in main][:asked]
        rest = [i for i in range(view.n) if i not in main]
        order = [i for i in by_attention if i in rest]
        tokens = [rows[i] for i in sorted(main)]
        for i in order[:count]:
            others = [j for j in rest if j != i]
            likeness = torch.stack(
                [
                    torch.cosine_similarity(keys[key_of(i, rest)], keys[key_of(j, rest)], dim=0) + 50 * text[j]
                    for j in others
                ]
            )
            tokens.append(rows[i] + sum(attention[others[j]] * rows[others[j]] for j in top_k(likeness, 32).tolist()))
        tokens.append(sum(attention[j] * rows[j] for j in order[count:]))
        return sorted(main) + order[: count + 1], torch.stack(tokens)

    def counts(self, view: ImageView, asked: Recoverable) -> tuple[int, int, int]:
        return asked.counts(view["attention"], mean_cosine(view["aligned"]) / WIDTH**0.5, self.WIDE)

    @pytest.mark.parametrize("adaptive", [True, False])
    @pytest.mark.parametrize("compat", ["paper", "official"])
    @pytest.mark.parametrize("clip", [True, False])
    def test_it_is_the_definition(self, adaptive: bool, compat: str, clip: bool) -> None:
        view, asked = self.view(clip=clip), Recoverable(adaptive=adaptive, compat=compat)
        counts = self.counts(view, asked)
        if not adaptive:
            counts = recoverable.within(40, *counts)
        assert min(counts) > 0
        key_of = (lambda i, rest: rest.index(i)) if compat == "official" else (lambda i, rest: i)
        anchors, features = self.naive(view, counts, key_of)
        merged = merged_by(asked, view)
        assert merged.anchors.tolist() == anchors
        torch.testing.assert_close(merged.features, features, rtol=1e-4, atol=1e-5)
        assert adaptive or len(features) == 40

    def test_the_counts_are_outliers(self) -> None:
        view = self.view()
        attention, text = view["attention"], mean_cosine(view["aligned"]) / WIDTH**0.5
        seen, asked, centres = self.counts(view, Recoverable())
        assert seen == local_outliers(attention, 20)
        marked = text.clone()
        marked[top_k(attention, seen)] = text.min()
        assert asked == int((200 - seen) * (local_outliers(marked, 20) / 200))
        rest = recoverable.split(attention, text, seen, asked)[1]
        assert centres == local_outliers(attention[rest], 10) and len(rest) == 200 - seen - asked
        official = self.counts(view, Recoverable(compat="official"))
        assert official == (seen, asked, int(self.WIDE * (centres / len(rest))))

    @given(st.integers(1, 300), st.integers(0, 50), st.integers(0, 50), st.integers(0, 50))
    @settings(max_examples=300, deadline=None)
    def test_a_budget_is_shared_out_in_proportion(self, keep: int, seen: int, asked: int, centres: int) -> None:
        a, b, c = recoverable.within(keep, seen, asked, centres)
        assert min(a, b, c) >= 0 and a + b + c + (c > 0) == keep
        total = max(1, seen + asked + centres)
        assert (c > 0) <= (centres > 0) and (b > 0) <= (asked > 0)
        assert c <= (keep - 1) * centres / total and abs(b - asked / total * keep) <= 2

    def test_without_a_centre_main_tokens_come_alone(self) -> None:
        view = self.view(keep=3)
        merged = merged_by(Recoverable(), view)
        assert torch.equal(merged.features, view["rows"].rows[merged.anchors])

    def test_at_least_one_token_and_official_says_where_theirs_has_none(self) -> None:
        view = self.view()
        view["attention"][:] = 1 / 200
        view.signals = {**view.signals, "aligned": Aligned(torch.ones(200, 2), torch.ones(1, 2), True)}
        assert merged_by(Recoverable(adaptive=True), view).anchors.tolist() == [0]
        with pytest.raises(UserError, match="the authors' code fails: 0 main tokens, 0 centres"):
            Recoverable(adaptive=True, compat="official").select(view)

    def test_official_counts_centres_by_the_width(self) -> None:
        view = self.view(n=60)
        wide = TowerRows(values("noise", 60, 4096), None)
        view.signals = {**view.signals, "rows": wide}
        with pytest.raises(UserError, match=r"the authors' code fails: \d+ main tokens, \d\d+ centres\.$"):
            Recoverable(adaptive=True, compat="official").select(view)
        assert len(merged_by(Recoverable(), view).features) == 40
