"""V2Drop."""

from __future__ import annotations

import pytest
import torch
from harness import RAGGED, built, inputs_of
from harness_staged import HYBRID, LLAVA, QWEN2, counts_of, layers_of
from torch import Tensor

import vlmprune
from vlmprune.core.plan import acts_of
from vlmprune.core.signals import LayerInput, LayerOutput
from vlmprune.core.view import ImageView, ModelInfo
from vlmprune.methods.decoder.v2drop import V2Drop
from vlmprune.testing.decoder import watched


def changed(lengths: list[float], keep: int) -> ImageView:
    """Tokens to which a layer has added vectors of these lengths; the tokens themselves are large and alike."""
    before = torch.full((len(lengths), 4), 100.0)
    after = before + torch.tensor(lengths)[:, None] * torch.tensor([0.0, 0.6, 0.0, -0.8])
    return ImageView(keep, torch.arange(len(lengths)), None, LLAVA, {"before": before, "after": after})


def test_tokens_that_changed_most_are_kept_and_ties_go_to_the_earlier_one() -> None:
    assert V2Drop().score(changed([0.0, 3.0, 1.0], 1)).tolist() == pytest.approx([0.0, 3.0, 1.0], abs=1e-4)
    assert V2Drop().select(changed([1.0, 4.0, 2.0, 4.0, 0.0], 2)).tolist() == [1, 3]
    assert V2Drop().select(changed([2.0] * 6, 3)).tolist() == [0, 1, 2]
    assert V2Drop().select(changed([0.0, 0.0], 1)).tolist() == [0]


def test_layers_and_counts_are_the_authors() -> None:
    assert layers_of(V2Drop()) == [3, 17, 22] and layers_of(V2Drop(), QWEN2) == [3, 16, 22]
    assert counts_of(V2Drop(), 0.5, 576) == counts_of(V2Drop(), 288, 576) == [288, 144, 1]
    assert counts_of(V2Drop(), 0.25, 131, QWEN2) == [32, 1, 1] and counts_of(V2Drop(), 0.25, 400, QWEN2) == [100, 5, 1]
    assert counts_of(V2Drop(), 0.25, 20, QWEN2) == [5, 1, 1] and counts_of(V2Drop(), 0.5, 1) == [1, 1, 1]
    assert counts_of(V2Drop(), 0.29, 100) == [29, 8, 1]
    entering = (3 * 576 + 14 * 288 + 5 * 144 + 10) / 32
    assert entering == pytest.approx(202.8, abs=0.05)


def test_a_budget_of_all_tokens_cuts_nothing() -> None:
    for keep, total in ((1.0, 576), (64, 60), (64, 64)):
        assert counts_of(V2Drop(), keep, total) == [total] * 3
    assert counts_of(V2Drop(layers=(2,)), 0.3, 100) == [30]
    assert counts_of(V2Drop(layers=(2, 4)), 0.3, 100) == [30, 9]


def test_it_needs_no_attention_so_that_recurrent_layers_are_as_good() -> None:
    assert V2Drop().needs(HYBRID) == {"before": LayerInput(), "after": LayerOutput()}
    assert layers_of(V2Drop(), HYBRID) == [3, 18, 25]
    assert layers_of(V2Drop(), ModelInfo("qwen3_vl", 24, 36, False)) == [4, 21, 28]


def test_a_mean_over_the_layers_can_be_asked_for() -> None:
    acts = acts_of(V2Drop(), 192, LLAVA, budget="mean")
    counts, left = [], 576
    for act in acts:
        left = act.of(576).budget(left, 576)
        counts.append(left)
    assert (3 * 576 + 14 * counts[0] + 5 * counts[1] + 10) / 32 == pytest.approx(192, abs=1)
    with pytest.raises(vlmprune.UserError, match="cannot meet a budget"):
        acts_of(V2Drop(), 0.05, LLAVA, budget="mean")[0].of(576)


@pytest.mark.parametrize("wrong", [(1, 2, 3, 4), (3, 2), (0, 2)])
def test_wrong_layers_are_refused(wrong: tuple[int, ...]) -> None:
    with pytest.raises(vlmprune.UserError, match="v2drop"):
        V2Drop(layers=wrong).acts(LLAVA, 0.5)


@torch.no_grad()
def test_on_qwen3_vl_the_added_encoder_features_are_no_change() -> None:
    """Layer 0 of the tiny model is followed by a level of deepstack."""
    torch.set_num_threads(1)
    model, inputs, seen = built("qwen3_vl"), inputs_of("qwen3_vl", RAGGED), []

    class Noting(V2Drop):
        def score(self, view: ImageView) -> Tensor:
            seen.append(super().score(view))
            return seen[-1]

    adapter = vlmprune.models.adapter_for(model)
    with watched(adapter, 0) as layer:
        model(**inputs)
    with vlmprune.prune(model, Noting(layers=(1,)), keep=0.5):
        model(**inputs)
    own = (inputs["input_ids"] == model.config.image_token_id)[0].nonzero().squeeze(1)[: len(seen[0])]
    assert torch.allclose(seen[0], (layer["output"] - layer["input"])[0, own].norm(dim=1), atol=1e-4)
    assert not torch.allclose(seen[0], (layer["next"] - layer["input"])[0, own].norm(dim=1), atol=1e-2)
