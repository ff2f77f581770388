"""PruneSID."""

from __future__ import annotations

import pytest
import torch
from harness_views import INTERN, KINDS, LLAVA, NEXT, QWEN, SMOL, check_picks, image, merged_by, of_tensors, picked
from harness_views import values as numbers
from torch import Tensor

from vlmprune.core.errors import UserError
from vlmprune.core.view import ImageView, ModelInfo, TowerRows
from vlmprune.methods.quotas import quotas
from vlmprune.methods.vision.prunesid import PruneSID


def shown(keep: int, rows: Tensor, attention: Tensor) -> ImageView:
    return of_tensors(keep, None, attention=attention, rows=TowerRows(rows, rows[:1]))


class TestComponents:
    @pytest.mark.parametrize(("n", "width"), [(30, 12), (12, 30)])
    def test_they_are_the_singular_vectors(self, n: int, width: int) -> None:
        features = numbers("noise", n, width)
        spread = features.sigmoid().double()
        _, _, vectors = torch.linalg.svd((spread - spread.mean(1, keepdim=True)).T, full_matrices=False)
        found = PruneSID().components(features, 5)
        assert torch.allclose(found.abs(), vectors[:5].T.abs().float(), atol=1e-5)

    def test_there_is_one_for_every_four_tokens(self) -> None:
        def counts(info: ModelInfo) -> list[int]:
            return [PruneSID().groups(image(PruneSID(), 90, keep, info=info)) for keep in (1, 3, 4, 7, 8, 64)]

        assert counts(LLAVA) == [1, 1, 1, 1, 2, 16]
        assert counts(QWEN) == [1, 3, 4, 4, 4, 16]


class TestSuppression:
    def test_a_token_like_a_better_one_of_its_group_comes_after_all_others(self) -> None:
        rows = torch.tensor([[1.0, 0], [1, 0.01], [0, 1], [0.01, 1], [1, 1]])
        view = shown(4, rows, torch.tensor([0.1, 0.5, 0.4, 0.3, 0.2]))
        one_group = torch.ones(5, 1)
        asked = PruneSID()
        asked.threshold = lambda similarity, keep, attends: 0.99  # type: ignore[method-assign]
        [part] = asked.parts(view, one_group)
        assert part.tolist() == [1, 2, 4, 3]  # 0 repeats 1, and 3 repeats 2: of these the better one first

    def test_similar_tokens_of_two_groups_do_not_suppress_each_other(self) -> None:
        rows = torch.tensor([[1.0, 0], [1, 0], [1, 0], [1, 0]])
        view = shown(3, rows, torch.tensor([0.4, 0.3, 0.2, 0.1]))
        asked = PruneSID()
        asked.threshold = lambda similarity, keep, attends: 0.5  # type: ignore[method-assign]
        parts = asked.parts(view, torch.eye(2).repeat_interleave(2, 0))
        assert [part.tolist() for part in parts] == [[0], [2, 3]]  # else group 1 had no distinct token

    def test_tokens_without_attention_do_not_survive_but_fill_the_budget(self) -> None:
        view = shown(3, torch.eye(4), torch.tensor([0.0, 1, 0, 0]))
        [part] = PruneSID().parts(view, torch.ones(4, 1))
        assert part.tolist() == [1, 0, 2]

    def test_thresholds(self) -> None:
        similarity = torch.tensor([[1.0, 0.2, 0.4], [0.2, 1, 0.6], [0.4, 0.6, 1]])
        assert PruneSID().threshold(similarity, 64, True) == pytest.approx(2 * 0.4)
        assert PruneSID().threshold(similarity, 1, False) == pytest.approx(6 * 4.2 / 9)
        assert PruneSID().threshold(torch.eye(40), 2, False) == pytest.approx(40 / 1600)  # never below the mean itself


class TestQuotas:
    def test_shares_by_distinct_tokens(self) -> None:
        assert quotas([10, 10, 10], [8, 4, 4], 11, 11) == [5, 3, 3]

    def test_what_bounds_leave_over_goes_to_the_most_distinct(self) -> None:
        assert quotas([8, 12], [1, 12], 10, 10) == [3, 7]

    def test_bounds_rise_until_the_budget_fits(self) -> None:
        assert quotas([10, 2], [1, 1], 11, 11) == [9, 2]

    @pytest.mark.parametrize("seed", range(20))
    def test_they_add_up_and_no_group_gives_more_than_it_has(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        sizes = torch.randint(0, 30, (7,), generator=generator)
        distinct = (sizes * torch.rand(7, generator=generator)).ceil().long().tolist()
        for keep in range(7, int(sizes.sum()) + 1):
            for total in (keep - 1, keep):
                given = quotas(sizes.tolist(), distinct, keep, total)
                assert sum(given) == max(total, int((sizes > 0).sum()))
                assert all(0 <= count <= size for count, size in zip(given, sizes.tolist(), strict=True))


class TestPruneSID:
    @pytest.mark.parametrize(("n", "width"), [(34, 32), (51, 16), (67, 100), (130, 40)])
    @pytest.mark.parametrize("info", [LLAVA, QWEN])
    def test_equal_tokens_go_by_index_however_a_product_rounds(self, n: int, width: int, info: ModelInfo) -> None:
        alike = numbers("noise", 1, width).repeat(n, 1)
        for keep in (1, 10, n - 1):
            view = image(PruneSID(), n, keep, info=info)
            view.signals = {"rows": TowerRows(alike, alike[:1]) if info is LLAVA else alike, "attention": torch.ones(n)}
            assert picked(PruneSID(), view).tolist() == list(range(keep))

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("info", [LLAVA, QWEN])
    def test_whatever_the_numbers_the_budget_is_exact(self, kind: str, info: ModelInfo) -> None:
        for keep in (1, 2, 3, 4, 5, 30, 59):
            check_picks(picked(PruneSID(), image(PruneSID(), 60, keep, kind, info=info)), keep, 60)

    @pytest.mark.parametrize("keep", [1, 2, 17, 59])
    def test_official_puts_the_cls_token_first_and_the_groups_in_order(self, keep: int) -> None:
        official = PruneSID(compat="official")
        assert official.merges and official.exact and not PruneSID().merges
        view = image(official, 60, keep)
        merged, rows = merged_by(official, view), view["rows"]
        anchors = merged.anchors.tolist()
        assert anchors[0] == -1 and len(set(anchors)) == keep and merged.space == "tower"
        assert torch.equal(merged.features, torch.cat([rows.cls, rows.rows[anchors[1:]]]))
        groups = official.components(rows.rows, official.groups(view)).abs().argmax(1)[anchors[1:]].tolist()
        assert groups == sorted(groups)

    def test_official_is_the_default_where_there_is_no_cls_token(self) -> None:
        for info in (QWEN, SMOL, INTERN):
            view = image(PruneSID(), 60, 17, info=info)
            assert torch.equal(picked(PruneSID(compat="official"), view), picked(PruneSID(), view))

    def test_the_variant_goes_by_the_family_or_as_asked(self) -> None:
        def attends(asked: PruneSID, info: ModelInfo) -> bool:
            return "attention" in asked.needs(info)

        assert [attends(PruneSID(), info) for info in (LLAVA, NEXT, QWEN, INTERN, SMOL)] == [True, True] + [False] * 3
        assert attends(PruneSID(variant="llava"), QWEN) and not attends(PruneSID(variant="qwen"), LLAVA)
        view = image(PruneSID(variant="llava"), 60, 17, info=QWEN)
        check_picks(picked(PruneSID(variant="llava"), view), 17, 60)

    def test_values_that_are_not_allowed_are_refused(self) -> None:
        with pytest.raises(UserError, match="prunesid"):
            PruneSID(variant="internvl")  # type: ignore[arg-type]
