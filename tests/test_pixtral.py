"""Pixtral-12B, a LLaVA whose tower takes pictures of any size: which adapter it gets, and what that needs."""

from __future__ import annotations

import pytest
from harness import built, inputs_of

import vlmprune
from vlmprune import UserError
from vlmprune.core.view import Grid
from vlmprune.models import adapter_for
from vlmprune.testing import pixtral
from vlmprune.testing.weights import IMAGE, LLAMA, builder, pinpoints

NAME = "llava with Pixtral"


def test_its_adapter_is_chosen_by_the_tower() -> None:
    assert type(adapter_for(built(NAME))).__name__ == "PixtralAdapter" and adapter_for(built(NAME)).family == "llava"
    for settings in ({"vision_feature_layer": [-2, -1]}, {"vision_feature_select_strategy": "default"}):
        options = {"vision_feature_layer": -1, "vision_feature_select_strategy": "full", **settings}
        other = builder("Llava", pixtral.TOWER, LLAMA, image_token_id=IMAGE, **options)()
        assert type(adapter_for(other)).__name__ == "GenericAdapter"
    tiled = builder(
        "LlavaNext", pixtral.TOWER, LLAMA, image_token_index=IMAGE, image_grid_pinpoints=pinpoints(16),
        vision_feature_layer=-1, vision_feature_select_strategy="full",
    )()  # fmt: skip
    assert type(adapter_for(tiled)).__name__ == "GenericAdapter"


def test_a_grid_of_a_slot_for_each_patch() -> None:
    with vlmprune.prune(built(NAME), "hiprune", keep=0.5) as session:
        built(NAME)(**inputs_of(NAME, [[0, 1], [2]]))
    assert session.last.grids == [[Grid(4, 8), Grid(8, 4)], [Grid(6, 6)]]


def test_pictures_without_their_sizes() -> None:
    """The features of all are then one row, which transformers itself would take for one picture."""
    inputs = inputs_of(NAME, [[2]])
    del inputs["image_sizes"]
    built(NAME)(**inputs)
    with vlmprune.prune(built(NAME), "divprune", keep=0.5), pytest.raises(UserError, match="pass them, too"):
        built(NAME)(**inputs)
