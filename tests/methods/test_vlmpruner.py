"""VLM-Pruner."""

from __future__ import annotations

import pytest
import torch
from golden_runners.case import acting
from harness_views import LLAVA, QWEN, values
from torch import Tensor

from vlmprune.core.view import Grid, ImageView, Merged, Tokens
from vlmprune.methods.decoder.vlmpruner import VLMPruner
from vlmprune.methods.farthest import farthest_first
from vlmprune.methods.outward import Outward
from vlmprune.runtime.select import choose


def tokens(keep: int, grid: Grid | None, kind: str = "noise", n: int = 0, states: Tensor | None = None) -> ImageView:
    n = n or (grid.size if grid else 24)
    keys = values(kind, n + 2, 6, seed=1)
    states = values(kind, n + 2, 300, seed=2) if states is None else states
    signals = {"keys": Tokens(keys[:n], keys[n:]), "states": Tokens(states[:n], states[n:])}
    return ImageView(keep, torch.arange(n), grid, LLAVA, signals)


def merged_by(method: VLMPruner, view: ImageView) -> Merged:
    return method.select(acting(method, view.keep, view))


@pytest.mark.parametrize("kind", ["noise", "ties", "constant", "zero", "half zero", "duplicates", "one line"])
@pytest.mark.parametrize("keep", [1, 3, 4, 12, 23])
def test_any_states_and_any_budget(kind: str, keep: int) -> None:
    merged = merged_by(VLMPruner(), tokens(keep, Grid(4, 6), kind))
    anchors = merged.anchors.tolist()
    assert len(anchors) == keep and anchors == sorted(set(anchors)) and merged.features.isfinite().all()


@pytest.mark.parametrize("keep", [1, 9])
def test_the_authors_end_where_all_are_alike_and_keep_their_pivots(keep: int) -> None:
    states = values("noise", 26, 300, seed=2)
    states[:, 0] = torch.linspace(900, 1000, 26)  # one channel in which all are large
    official = merged_by(VLMPruner(compat="official"), tokens(keep, Grid(4, 6), states=states))
    assert len(official.anchors) == 4
    assert len(merged_by(VLMPruner(), tokens(keep, Grid(4, 6), states=states)).anchors) == keep


def test_pivots_are_the_longest_key_then_the_farthest_and_none_twice() -> None:
    keys = torch.tensor([[0.0, 0.0], [5.0, 0.0], [0.0, 0.0], [0.0, 4.0], [5.0, 0.0]])
    first = torch.tensor(1)
    assert farthest_first(keys, first, 3).tolist() == [1, 3, 0]
    assert sorted(farthest_first(keys, first, 5).tolist()) == [0, 1, 2, 3, 4]
    assert farthest_first(keys, first, 5, again=True).tolist() == [1, 3, 0, 0, 0]
    assert farthest_first(keys, first, 0).tolist() == []


def test_of_two_tokens_alike_the_near_one_comes_first() -> None:
    likeness = torch.eye(4) + 0.5 * (1 - torch.eye(4))
    distance = torch.tensor([0.0, 0.9, 0.1, 0.5])[:, None].expand(4, 4)  # to token 0
    search = Outward(likeness, distance, torch.tensor([0]), 3)
    torch.testing.assert_close(search.redundancy(torch.tensor([1, 2, 3])), 0.5 * torch.tensor([1.45, 1.05, 1.25]))
    search.rounds(0.8, batch=1)
    assert search.chosen.tolist() == [0, 2, 3]


def test_a_batch_is_compared_with_what_is_chosen_by_then() -> None:
    likeness = torch.tensor([[1.0, 0.1, 0.2, 0.3], [0.1, 1.0, 0.95, 0.0], [0.2, 0.95, 1.0, 0.0], [0.3, 0.0, 0.0, 1.0]])
    search = Outward(likeness, torch.zeros(4, 4), torch.tensor([0]), 3)
    search.rounds(0.8, batch=1)
    assert search.chosen.tolist() == [0, 1, 3]  # 2 repeats 1, which the first look did not know
    together = Outward(likeness, torch.zeros(4, 4), torch.tensor([0]), 3)
    together.rounds(0.8, batch=2)
    assert together.chosen.tolist() == [0, 1, 2]


def test_dropped_tokens_are_merged_by_their_likeness() -> None:
    states = torch.zeros(6, 4)
    states[0], states[1], states[2] = (
        torch.tensor([1.0, 0, 0, 0]),
        torch.tensor([0, 1.0, 0, 0]),
        torch.tensor([2.0, 0, 0, 0]),
    )
    states[3] = torch.tensor([0, 0, -1.0, 0])
    merged = merged_by(VLMPruner(pivots=1), tokens(3, Grid(2, 2), n=4, states=states))
    kept = merged.anchors.tolist()
    assert merged.unchanged is not None and len(kept) == 3
    (gone,) = {0, 1, 2, 3} - set(kept)
    assert gone in (0, 2)
    host = kept.index(2 - gone)
    assert merged.unchanged.tolist() == [place != host for place in range(3)]
    torch.testing.assert_close(merged.features[host], 0.3 * states[2 - gone] + 0.7 * states[gone])


def test_places_are_those_of_the_picture() -> None:
    view = tokens(4, Grid(3, 4))
    distance = VLMPruner().distance(view)
    assert float(distance[0, 11]) == pytest.approx(13**0.5 / 5) and float(distance[1, 5]) == pytest.approx(1 / 5)
    view.info = QWEN
    assert VLMPruner(compat="official").fold(view) == (8, 10.0) and VLMPruner().fold(view) == (4, 5.0)
    assert not VLMPruner().distance(tokens(4, None)).any()


def test_frames_choose_by_themselves_and_newlines_go_first() -> None:
    view = tokens(8, Grid(2, 4, 2), n=18)
    view.cells = torch.cat([torch.arange(8), torch.tensor([-1]), torch.arange(8, 16), torch.tensor([-1])])
    method = VLMPruner()
    chosen = choose(acting(method, 8, view))
    assert isinstance(chosen, Merged)
    kept = chosen.anchors.tolist()
    assert sum(token < 8 for token in kept) == 4 and not {8, 17} & set(kept)
