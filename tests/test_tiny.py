"""The tiny families themselves: what vanilla transformers does with them, before any pruning."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import pytest
import torch
from tiny import FAMILIES, alone, image_numbers, paint, prompt
from torch import Tensor

RAGGED: list[list[int | None]] = [[0, 1], [2]]
families = pytest.mark.parametrize("family", FAMILIES)


@cache
def built(family: str, attention: str = "sdpa") -> Any:
    return FAMILIES[family].build(attention)


def generate(model: Any, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """New token ids [B, T] and the logits they were chosen from [B, T, V]."""
    out = model.generate(**inputs, max_new_tokens=3, do_sample=False, return_dict_in_generate=True, output_logits=True)
    return out.sequences[:, inputs["input_ids"].shape[1] :], torch.stack(out.logits, dim=1)


@families
def test_eager_equals_sdpa_and_batch_equals_alone(family: str) -> None:
    inputs = prompt(FAMILIES[family], RAGGED)
    tokens, logits = generate(built(family), inputs)
    eager_tokens, eager_logits = generate(built(family, "eager"), inputs)
    assert torch.equal(tokens, eager_tokens)
    assert (logits - eager_logits).abs().max() < 1e-4
    for row in range(len(RAGGED)):
        single_tokens, single_logits = generate(built(family), alone(FAMILIES[family], RAGGED, row))
        assert torch.equal(single_tokens[0], tokens[row])
        assert (single_logits[0] - logits[row]).abs().max() < 2e-4


@families
@pytest.mark.parametrize("samples", [RAGGED, [[3], [None, 4], [5, 1]]])
def test_image_numbers_count_the_slots(family: str, samples: list[list[int | None]]) -> None:
    inputs, numbers = prompt(FAMILIES[family], samples), image_numbers(FAMILIES[family], samples)
    assert numbers.shape == inputs["input_ids"].shape
    assert torch.equal(numbers >= 0, torch.isin(inputs["input_ids"], torch.tensor([90, 91])))
    for row, sample in zip(numbers, samples, strict=True):
        slots = [FAMILIES[family].slots(seed) for seed in sample if seed is not None]
        assert [int((row == number).sum()) for number in range(len(slots))] == slots
    assert torch.isfinite(built(family)(**inputs).logits).all()


def features(model: Any, arguments: dict[str, Tensor]) -> Tensor:
    """What stands in the slots of one image or video: [slots, hidden]."""
    arguments = {key: value for key, value in arguments.items() if key != "second_per_grid_ts"}  # for positions only
    video = "pixel_values_videos" in arguments
    with torch.no_grad():
        out = (model.model.get_video_features if video else model.model.get_image_features)(**arguments).pooler_output
    return (torch.cat(list(out)) if isinstance(out, (tuple, list)) else out).reshape(-1, 32)


def in_text_model(name: str) -> bool:
    return "language_model" in name or "text_model" in name or "lm_head" in name


def without_attention(model: Any) -> Any:
    """A copy whose tower lets no patch see another."""
    model, silenced = copy.deepcopy(model), 0
    for name, parameter in model.named_parameters():
        if not in_text_model(name) and any(key in name for key in ("attn.out_proj", "attn.proj", "projection_layer")):
            parameter.data.zero_()
            silenced += 1
    assert silenced >= 4
    return model


def places(patches: list[list[tuple[int, int, int]]], arguments: dict[str, Tensor]) -> list[tuple[int, int, int]]:
    """Every patch of the image, also those that no slot has."""
    pixels = next(value for key, value in arguments.items() if key.startswith("pixel_values"))
    if pixels.dim() == 2:
        return sorted(place for slot in patches for place in slot)
    tiles, side = pixels.view(-1, *pixels.shape[-3:]).shape[0], pixels.shape[-1] // 4
    return [(tile, row, col) for tile in range(tiles) for row in range(side) for col in range(side)]


@families
def test_the_patches_behind_each_slot(family: str) -> None:
    """With a tower that lets no patch see another, painted patches change the slots made from them and no others."""
    model = without_attention(built(family))
    for seed in range(4):
        arguments, patches = FAMILIES[family].image(seed)[0], FAMILIES[family].patches(seed)
        assert len(patches) == FAMILIES[family].slots(seed) == len(FAMILIES[family].cells(seed))
        before, everywhere = features(model, arguments), places(patches, arguments)
        for trial in range(6):
            chance = torch.rand(len(everywhere), generator=torch.Generator().manual_seed(trial))
            chosen = {place for place, drawn in zip(everywhere, chance.tolist(), strict=True) if drawn < 0.15}
            painted = arguments
            for place in chosen:
                painted = paint(painted, *place, 3.0)
            changed = (features(model, painted) - before).abs().amax(1) > 1e-4
            assert changed.tolist() == [bool(chosen & set(slot)) for slot in patches]


@families
def test_a_patch_reaches_all_slots_of_its_tile_only(family: str) -> None:
    model = built(family)
    for seed in range(4):
        arguments, patches = FAMILIES[family].image(seed)[0], FAMILIES[family].patches(seed)
        before = features(model, arguments)
        for tile in {place[0] for slot in patches for place in slot}:
            change = (features(model, paint(arguments, tile, 0, 0, 3.0)) - before).abs().amax(1)
            for slot, difference in zip(patches, change.tolist(), strict=True):
                if slot:
                    assert (difference > 1e-5) == any(place[0] == tile for place in slot)


@families
def test_cells_and_painted(family: str) -> None:
    """`cells` names the nearest patch of each slot, and `painted` changes what the prompt carries."""
    subject = FAMILIES[family]
    for seed in range(4):
        for cell, slot in zip(subject.cells(seed), subject.patches(seed), strict=True):
            assert (cell is None) == (not slot)
            if cell is not None:
                assert (cell[0], *cell[1][0]) == slot[0] and {(cell[0], *spot) for spot in cell[1]} <= set(slot)
    plain, painted = prompt(subject, RAGGED), prompt(subject.painted({2: [(0, 1, 2)]}, 5.0), RAGGED)
    differing = {name for name in plain if not torch.equal(plain[name], painted[name])}
    assert len(differing) == 1 and differing <= {"pixel_values", "pixel_values_videos"}
