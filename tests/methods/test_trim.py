"""TRIM."""

from __future__ import annotations

import pytest
import torch
from harness_text import of_text, shown_with_text
from harness_views import LLAVA, QWEN, WIDTH, merged_by, values
from torch import Tensor

from vlmprune.core.view import ImageView, TowerRows
from vlmprune.methods.vision.trim import Trim


class TestTrim:
    def naive(self, view: ImageView, scores: Tensor) -> tuple[list[int], Tensor]:
        order = sorted(range(view.n), key=lambda i: (-float(scores[i]), i))
        kept, rest = sorted(order[: view.keep - 1]), sorted(order[view.keep - 1 :])
        rows = view["rows"].rows
        return [*kept, order[view.keep - 1]], torch.stack([*rows[kept], rows[rest].mean(0)])

    @pytest.mark.parametrize(("n", "keep"), [(60, 20), (9, 1), (9, 2), (30, 29), (2, 1)])
    @pytest.mark.parametrize("clip", [True, False])
    def test_the_top_in_order_of_position_and_the_mean_of_the_rest_last(self, n: int, keep: int, clip: bool) -> None:
        view = shown_with_text(Trim(), clip, n=n, keep=keep)
        visual, text = view["aligned"][:2]
        scores = -(visual @ text.T).mean(1) if clip else torch.cosine_similarity(visual[:, None], text, dim=-1).mean(1)
        anchors, features = self.naive(view, scores)
        merged = merged_by(Trim(), view)
        assert merged.anchors.tolist() == anchors
        torch.testing.assert_close(merged.features, features)

    def test_metric_and_sign_are_the_users(self) -> None:
        view = shown_with_text(Trim(), n=60, keep=20)
        visual, text = view["aligned"][:2]
        cosine = torch.cosine_similarity(visual[:, None], text, dim=-1).mean(1)
        dot = (visual @ text.T).mean(1)
        for metric, found in (("cosine", cosine), ("dot", dot)):
            for sign in (1, -1):
                similarity = Trim(metric=metric, relevance_sign=sign).similarity(view)
                torch.testing.assert_close(similarity, sign * found)
        assert torch.equal(Trim().similarity(view), Trim(metric="dot", relevance_sign=-1).similarity(view))

    @pytest.mark.parametrize("outliers", [0, 1, 9, 40])
    def test_adaptive_counts_what_stands_out(self, outliers: int) -> None:
        scores = torch.linspace(0, 0.1, 576)
        scores[torch.arange(outliers) * 11] += 3 + torch.arange(outliers) / 99
        view = of_text(5, -scores[:, None], torch.ones(1, 1), rows=TowerRows(values("noise", 576, WIDTH), None))
        merged = merged_by(Trim(adaptive=True), view)
        expected = (torch.arange(outliers) * 11).tolist()
        assert merged.anchors.tolist()[:-1] == expected and len(merged.features) == outliers + 1
        assert int(merged.anchors[-1]) == 575  # the most relevant of the others

    def test_official_loses_a_token_to_rounding(self) -> None:
        for n, keep, kept in ((22, 16, 15), (576, 118, 118), (100, 30, 29)):
            view = shown_with_text(Trim(), n=n, keep=keep)
            assert len(merged_by(Trim(compat="official"), view).features) == kept
            assert len(merged_by(Trim(), view).features) == keep

    def test_on_qwen_tokens_stand_in_their_order(self) -> None:
        ours, theirs = (merged_by(Trim(), shown_with_text(Trim(), n=50, keep=6, info=info)) for info in (QWEN, LLAVA))
        order = theirs.anchors.argsort()
        assert torch.equal(ours.anchors, theirs.anchors[order]) and torch.equal(ours.features, theirs.features[order])
