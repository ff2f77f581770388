"""ApET."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from golden_runners.case import acting
from harness_staged import LLAVA, counts_of, layers_of
from harness_views import QWEN, values
from torch import Tensor

import vlmprune
from vlmprune.core.plan import acts_of
from vlmprune.core.view import ImageView, Merged, ModelInfo, Tokens, TowerRows
from vlmprune.methods.approximation import first, joined, most_similar, unexplained
from vlmprune.methods.farthest import farthest_first
from vlmprune.methods.hybrid.apet import ApET


def before(rows: Tensor, keep: int, info: ModelInfo = LLAVA, cls: Tensor | None = None) -> ImageView:
    return ImageView(keep, torch.arange(len(rows)), None, info, {"rows": TowerRows(rows, cls)})


def merged_by(method: ApET, view: ImageView) -> Merged:
    return method.select(acting(method, view.keep, view))


def test_the_published_counts_are_an_average_over_layers() -> None:
    assert layers_of(ApET()) == [None, 16]
    for keep, counts in ((64, [96, 32]), (128, [192, 64]), (192, [288, 96])):
        assert counts_of(ApET(), keep, 576) == counts_of(ApET(), keep / 576, 576) == counts
    assert counts_of(ApET(), 640, 2880) == [960, 320]
    assert counts_of(ApET(), 1.0, 576) == [576, 576] and counts_of(ApET(), 0.9, 1000) == [1000, 800]
    assert layers_of(ApET(inside=False)) == [None] and counts_of(ApET(inside=False), 0.3, 100) == [30]


def test_one_layer_at_most() -> None:
    with pytest.raises(vlmprune.UserError, match="one layer"):
        ApET(layers=(4, 8))
    with pytest.raises(vlmprune.UserError, match="inside=False"):
        ApET(layers=(4,), inside=False)


@pytest.mark.parametrize("write", ["replace", "half", "append", "none"])
@pytest.mark.parametrize("keep", [1, 2, 10, 11, 29])
@pytest.mark.parametrize("kind", ["noise", "ties", "constant", "zero", "duplicates", "one line"])
def test_any_rows_and_any_budget(write: str, keep: int, kind: str) -> None:
    rows = values(kind, 31, 5)
    for cls in (None, rows[30:]):
        merged = merged_by(ApET(basis_write=write), before(rows[:30], keep, cls=cls))  # type: ignore[arg-type]
        own = [anchor for anchor in merged.anchors.tolist() if anchor >= 0]
        assert len(merged.anchors) == keep == len(merged.features) and len(own) == len(set(own))
        assert merged.features.isfinite().all()
        assert len(own) == keep - (write == "append" and cls is not None and keep > 1)


def test_what_the_basis_spans_is_explained() -> None:
    basis = torch.eye(3, 5)
    rows = torch.cat([torch.tensor([[1.0, 2.0, -3.0, 0.0, 0.0]]), torch.tensor([[1.0, 0.0, 0.0, 3.0, 4.0]])])
    torch.testing.assert_close(unexplained(rows, basis, 0.0), torch.tensor([0.0, 5.0]))
    torch.testing.assert_close(unexplained(rows, basis[:0], 1e-5), rows.norm(dim=1), rtol=1e-5, atol=0.0)
    assert unexplained(rows, torch.cat([basis, basis]) * 1e3, 1e-5).allclose(torch.tensor([0.0, 5.0]), atol=1e-2)


def test_equal_tokens_tie_however_their_features_were_summed_up() -> None:
    rows = values("noise", 6, 5)
    rows[4] = rows[2] * (1 + 1e-7)
    errors = unexplained(rows, rows[:1], 1e-5)
    assert float(errors[2]) == float(errors[4])


def test_heads_become_means_and_the_basis_is_written_over_the_weakest() -> None:
    rows = values("noise", 12, 6)
    basis = farthest_first(rows, first(rows), 2)
    order = torch.sort(unexplained(rows, rows[basis], 1e-5), descending=True, stable=True).indices[:5]
    means = joined(rows, order[:3], *most_similar(rows, order[:3], order))
    for write, new in (("replace", rows[basis]), ("half", (rows[basis] + rows[order[3:].sort().values]) / 2)):
        merged = merged_by(ApET(basis=2, basis_write=write), before(rows, 5))  # type: ignore[arg-type]
        assert merged.anchors.tolist() == sorted(order.tolist()) and merged.space == "tower"
        by_anchor = dict(zip(merged.anchors.tolist(), merged.features, strict=True))
        for head, mean in zip(order[:3].tolist(), means, strict=True):
            assert torch.equal(by_anchor[head], mean)
        for place, row in zip(sorted(order[3:].tolist()), new, strict=True):
            assert torch.equal(by_anchor[place], row)


def test_inside_the_llm_the_basis_follows_the_errors() -> None:
    rows = values("noise", 12, 6)
    view = ImageView(5, torch.arange(12), None, QWEN, {"states": Tokens(rows, rows[:0])})
    view = replace(view, act=acts_of(ApET(basis=2), 5, QWEN)[1])
    merged = ApET(basis=2).select(view)
    basis = farthest_first(rows, first(rows), 2)
    order = torch.sort(unexplained(rows, rows[basis], 1e-5), descending=True, stable=True).indices[:5]
    by_anchor = dict(zip(merged.anchors.tolist(), merged.features, strict=True))
    assert merged.space == "llm"
    assert all(torch.equal(by_anchor[int(place)], row) for place, row in zip(order[3:], rows[basis], strict=True))


def test_a_single_head_takes_everything() -> None:
    rows = values("noise", 9, 6)
    torch.testing.assert_close(merged_by(ApET(), before(rows, 1)).features[0], rows.mean(0))


def test_appended_in_the_authors_order_or_by_position() -> None:
    rows, cls = values("noise", 12, 6), values("noise", 1, 6, seed=5)
    method = ApET(basis=2, basis_write="append")
    merged, basis = merged_by(method, before(rows, 6, cls=cls)), farthest_first(rows, first(rows), 2)
    assert merged.anchors.tolist()[0] == -1 and merged.anchors.tolist()[-2:] == basis.tolist()
    assert torch.equal(merged.features[0], cls[0]) and torch.equal(merged.features[-2:], rows[basis])
    moved = merged_by(method, before(rows, 6, QWEN))
    assert moved.anchors.tolist() == sorted(moved.anchors.tolist())


def test_the_acts_hide_other_slots_where_they_read_the_encoder_only() -> None:
    acts = acts_of(ApET(), 0.3, LLAVA)
    assert [(act.pool, act.sees_every_slot) for act in acts] == [("frame", False), ("image", True)]
    assert [act.pool for act in acts_of(ApET(per="frame"), 0.3, LLAVA)] == ["frame", "frame"]
