"""MiniCPM-V: slices of a picture beside the whole, and the mode that merges less."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from harness import built, inputs_of
from torch import Tensor

import vlmprune
from vlmprune.core.view import Grid
from vlmprune.doctor.prompts import one_prompt
from vlmprune.doctor.proof import POSITIONS, Case
from vlmprune.models import adapter_for
from vlmprune.testing import FAMILIES
from vlmprune.testing.families.minicpm import SLICE_BEGIN, SLICE_END
from vlmprune.testing.images import text
from vlmprune.testing.weights import IMAGE, IMAGE_BEGIN, IMAGE_END

MODELS = ("minicpmv4_6", "minicpmv4_7")


def sliced(family: str) -> dict[str, Tensor]:
    """The whole picture, two slices of it, and a question."""
    pieces = [FAMILIES[family].image(seed)[0] for seed in (2, 0, 3)]
    marks = [(IMAGE_BEGIN, IMAGE_END), *[(SLICE_BEGIN, SLICE_END)] * 2]
    ids = [1, *text(4, 0)]
    for piece, (begin, end) in zip(pieces, marks, strict=True):
        ids += [begin, *[IMAGE] * (int(piece["target_sizes"].prod()) // 16), end]
    row = torch.tensor([ids + text(5, 1)])
    return {
        "input_ids": row,
        "attention_mask": torch.ones_like(row),
        "pixel_values": torch.cat([piece["pixel_values"] for piece in pieces], dim=-1),
        "target_sizes": torch.cat([piece["target_sizes"] for piece in pieces]),
        **({"mm_token_type_ids": (row == IMAGE).int()} if family == "minicpmv4_7" else {}),
    }


@torch.no_grad()
@pytest.mark.parametrize("family", MODELS)
def test_each_slice_is_an_image(family: str) -> None:
    adapter = adapter_for(built(family))
    inputs = sliced(family)
    with vlmprune.prune(adapter.model, "hiprune", keep=3) as session:
        built(family)(**inputs)
    assert session.last.grids == [[Grid(3, 3), Grid(2, 4), Grid(2, 4)]]
    assert [len(kept) for kept in session.last.kept[0]] == [3, 3, 3]
    for spec in ("divprune:0.5", "fastv@2:0.5"):
        for positions in POSITIONS:
            Case(spec, positions, one_prompt(adapter, inputs)).judge(adapter)


@torch.no_grad()
@pytest.mark.parametrize("in_call", [True, False])
def test_the_mode_that_merges_less(in_call: bool) -> None:
    """Four times as many slots, each over 2 x 2 patches: set in the configuration, or in a call."""
    model: Any = copy.deepcopy(built("minicpmv4_6"))
    inputs = inputs_of("minicpmv4_6", [[0]])
    ids = inputs["input_ids"][0]
    more = torch.tensor([token for one in ids.tolist() for token in ([one] * 4 if one == IMAGE else [one])])[None]
    inputs = {**inputs, "input_ids": more, "attention_mask": torch.ones_like(more)}
    mode = {"downsample_mode": "4x"}
    if not in_call:
        model.config.downsample_mode = "4x"
    with vlmprune.prune(model, "hiprune", keep=9) as session:
        model(**inputs, **(mode if in_call else {}))
    assert session.last.grids == [[Grid(4, 8)]] and session.last.tokens == [(32, 9)]
    if not in_call:
        adapter = adapter_for(model)
        Case("divprune:0.5", "original", one_prompt(adapter, inputs)).judge(adapter)
