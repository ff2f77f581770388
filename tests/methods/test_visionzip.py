"""VisionZip."""

from __future__ import annotations

import pytest
import torch
from golden_runners.case import acting
from harness_views import (
    LLAVA,
    QWEN,
    WIDTH,
    canvas,
    check_merged,
    image,
    values,
)

from vlmprune.core.selectors import top_k
from vlmprune.core.view import ImageView, Merged, ModelInfo, TowerRows
from vlmprune.methods.vision.visionzip import VisionZip
from vlmprune.runtime.select import choose, shares


class TestVisionZip:
    @pytest.mark.parametrize("info", [LLAVA, QWEN])
    @pytest.mark.parametrize(("keep", "contextual"), [(1, 0), (2, 0), (3, 0), (4, 1), (64, 10), (128, 20), (192, 30)])
    def test_ten_of_64_are_contextual(self, info: ModelInfo, keep: int, contextual: int) -> None:
        view = image(VisionZip(), 576, keep, info=info)
        assert len(VisionZip().clusters(view).targets) == contextual
        check_merged(VisionZip().select(view), view)

    def test_at_least_one_token_stays_dominant(self) -> None:
        for contextual in (8, 50, 1.0):
            view = image(VisionZip(), 40, 8)
            parts = VisionZip(contextual=contextual).clusters(view)
            assert parts.dominant.tolist() == [0] and len(parts.targets) == 7

    def test_targets_are_spread_over_the_rest_and_everything_else_joins_one(self) -> None:
        view = image(VisionZip(), 30, 12)
        parts = VisionZip(contextual=4).clusters(view)
        rest = sorted(set(range(31)) - set(parts.dominant.tolist()))
        assert parts.targets.tolist() == rest[:: len(rest) // 4][:4]
        assert sorted(parts.targets.tolist() + parts.members.tolist()) == rest
        keys = torch.cat([view["keys"].cls, view["keys"].rows])
        for member, target in zip(parts.members, parts.assignment):
            likeness = torch.cosine_similarity(keys[member], keys[parts.targets], dim=-1)
            assert int(likeness.argmax()) == int(target)

    @pytest.mark.parametrize("info", [LLAVA, QWEN])
    def test_a_contextual_token_is_its_target_plus_the_mean_of_its_members(self, info: ModelInfo) -> None:
        view = image(VisionZip(), 30, 12, info=info)
        merged, parts = VisionZip(contextual=4).select(view), VisionZip(contextual=4).clusters(view)
        rows = view["rows"].rows if info is QWEN else torch.cat([view["rows"].cls, view["rows"].rows])
        shift = len(rows) - 30
        place = {anchor + shift: feature for anchor, feature in zip(merged.anchors.tolist(), merged.features)}
        for row in parts.dominant.tolist():
            assert torch.equal(place[row], rows[row])
        for number, target in enumerate(parts.targets.tolist()):
            members = rows[parts.members[parts.assignment == number]]
            wanted = rows[target] + (members.mean(0) if len(members) else 0)
            torch.testing.assert_close(place[target], wanted)

    def test_cls_then_dominant_then_contextual(self) -> None:
        view = image(VisionZip(), 30, 12)
        anchors = VisionZip(contextual=4).select(view).anchors.tolist()
        assert anchors[0] == -1
        assert anchors[1:8] == sorted(top_k(view["attention"], 7).tolist())
        assert anchors[8:] == sorted(anchors[8:])


class TestTiles:
    def view(self, keep: int) -> ImageView:
        """Two tiles beside each other, unpadded to 6 x 14 patches."""
        view = canvas(8, 1, 2, range(1, 7), range(1, 15), keep)
        rows, cls = values("noise", view.n, WIDTH, seed=3), values("noise", 3, WIDTH, seed=4)
        signals = {"attention": view["late"], "rows": TowerRows(rows, cls), "keys": TowerRows(rows, cls)}
        return ImageView(keep, view.slots, view.grid, view.info, signals, cells=view.cells)

    @pytest.mark.parametrize("keep", [1, 2, 3, 6, 7, 40, 147])
    def test_tiles_are_read_in_the_order_of_the_canvas(self, keep: int) -> None:
        view, method = self.view(keep), VisionZip()
        merged = choose(acting(method, keep, view))
        assert isinstance(merged, Merged) and len(merged.features) == keep
        alone, dominant, cls, contextual = [], [], [], []
        for tile, own in zip(range(3), shares([64, 42, 42], keep), strict=True):
            if own == 0:
                continue
            tokens = (view.frames == tile).nonzero().squeeze(1)
            needs = method.needs(view.info)
            part = view.part(tokens, own, {name: needs[name].take(view[name], tokens, tile) for name in needs})
            made = method.select(part)
            anchors = [int(tokens[a]) if a >= 0 else -1 for a in made.anchors.tolist()]
            pairs = list(zip(anchors, made.features.unbind()))
            if tile == 0:
                alone = pairs
                continue
            count = own - len(method.clusters(part).targets)
            cls, dominant, contextual = cls + pairs[:1], dominant + pairs[1:count], contextual + pairs[count:]
        expected = [*alone, *sorted(dominant, key=lambda pair: pair[0]), *cls, *contextual]
        assert merged.anchors.tolist() == [anchor for anchor, _ in expected]
        assert torch.equal(merged.features, torch.stack([feature for _, feature in expected]))

    def test_frames_of_a_video_and_towers_without_a_cls_token_follow_each_other(self) -> None:
        for info in (ModelInfo("video_llava", 24, 32, True), ModelInfo("llava_next", 27, 32, False)):
            view = self.view(40)
            view.info = info
            if not info.has_cls:
                view.signals = {n: TowerRows(s.rows, None) if n != "attention" else s for n, s in view.signals.items()}
            anchors = [a for a in choose(acting(VisionZip(), 40, view)).anchors.tolist() if a >= 0]
            tiles = view.frames[anchors].tolist()
            assert tiles == sorted(tiles)
