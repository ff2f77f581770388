"""VTW and the search for its layer."""

from __future__ import annotations

import pytest
import torch
from harness import RAGGED, built, inputs_of
from harness_staged import (
    LLAVA,
    layers_of,
)

import vlmprune
from vlmprune.fit.withdrawal import find_layer
from vlmprune.methods.decoder.vtw import VTW


def test_vtw_acts_where_its_budget_or_its_option_says() -> None:
    assert [layers_of(VTW(), LLAVA, keep) for keep in (0.5, 0.333, 0.01, 0.99, 1.0)] == [[16], [11], [1], [], []]
    assert layers_of(VTW(layer=20)) == [20]
    with pytest.raises(vlmprune.UserError, match="instead of 64"):
        VTW().acts(LLAVA, 64)
    with pytest.raises(vlmprune.UserError, match="takes no budget"):
        vlmprune.recipe(VTW(layer=16), 0.5)
    with pytest.raises(vlmprune.UserError, match="before decoder layer 40"):
        layers_of(VTW(layer=40))
    assert str(vlmprune.recipe(VTW(layer=16))) == "vtw@16"


def test_find_layer_is_the_first_that_changes_little() -> None:
    model, batches = built("llava"), [inputs_of("llava", RAGGED), inputs_of("llava", [[3]], seed=5)]
    divergences = []
    with torch.no_grad():
        for layer in range(1, 4):
            values = []
            for batch in batches:
                full = model(**batch).logits[:, -1]
                with vlmprune.prune(model, VTW(layer=layer)):
                    without = model(**batch).logits[:, -1]
                for p, q in zip(full, without, strict=True):
                    loss = torch.nn.KLDivLoss(reduction="batchmean")
                    values.append(float(loss(p.log_softmax(-1)[None], q.softmax(-1)[None])))
            divergences.append(sum(values) / len(values))
    for layer in (1, 2, 3):
        eta = divergences[layer - 1] + 1e-4
        wanted = next(number for number, value in enumerate(divergences, start=1) if value <= eta)
        assert find_layer(model, batches, eta=eta, first=1) == wanted
    assert find_layer(model, batches, eta=100.0, first=2) == 2
    with pytest.warns(UserWarning, match="by more than eta=0"):
        assert find_layer(model, batches, eta=0.0, first=1) == 4


def test_find_layer_says_what_is_wrong() -> None:
    inputs = inputs_of("llava", RAGGED)
    with pytest.raises(vlmprune.UserError, match="first=5 must be a layer from 1 to 3"):
        find_layer(built("llava"), [inputs])
    with pytest.raises(vlmprune.UserError, match="at least one batch"):
        find_layer(built("llava"), [], first=1)
    with pytest.raises(vlmprune.UserError, match="pad on the left"):
        find_layer(built("llava"), [{**inputs, "attention_mask": inputs["attention_mask"].flip(1)}], first=1)
