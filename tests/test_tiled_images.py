"""Tiles that make an image: which belong together, and which of them shows all of it."""

from __future__ import annotations

import pytest
import torch
from harness import built, inputs_of

import vlmprune
from vlmprune.testing import FAMILIES

# which tile shows the whole image, as the families' processors order them
WHOLE = {"internvl": -1, "smolvlm": -1, "aya_vision": -1, "cohere2_vision": -1, "ovis2": 0, "llama4": -1}


@torch.no_grad()
@pytest.mark.parametrize("family", WHOLE)
def test_the_tile_that_shows_all_of_an_image(family: str) -> None:
    with vlmprune.prune(built(family), "divprune", keep=5) as session:
        built(family)(**inputs_of(family, [[0, 1]]))
    for (whole,), grid in zip(session.last.wholes[0], session.last.grids[0], strict=True):
        assert grid is not None and whole.grid.size == 9
        start = 9 * range(grid.frames)[WHOLE[family]]
        assert (whole.cells >= 0).nonzero()[:, 0].tolist() == list(range(start, start + 9))


@torch.no_grad()
@pytest.mark.parametrize("family", ["internvl", "aya_vision", "cohere2_vision", "ovis2", "llama4"])
def test_images_without_text_between_them_are_told_apart(family: str) -> None:
    parts = [FAMILIES[family].image(seed) for seed in (0, 1, 2)]
    ids = torch.tensor([[1, 5, *(token for _, own in parts for token in own), 6, 7]])
    pixels = torch.cat([arguments["pixel_values"] for arguments, _ in parts])
    with vlmprune.prune(built(family), "divprune", keep=5) as session:
        built(family)(input_ids=ids, attention_mask=torch.ones_like(ids), pixel_values=pixels)
    assert [grid.frames for grid in session.last.grids[0] if grid] == [3, 1, 5]
    assert [len(kept) for kept in session.last.kept[0]] == [5, 5, 5]
