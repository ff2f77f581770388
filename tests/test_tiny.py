"""The tiny families themselves: what vanilla transformers does with them, before any pruning."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from harness import RAGGED, blind, built, families, generate, seeing
from torch import Tensor

from vlmprune.core.errors import UserError
from vlmprune.models import adapter_for
from vlmprune.runtime.oracle import is_recurrent
from vlmprune.testing import FAMILIES, alone, image_numbers, prompt
from vlmprune.testing.families import declared
from vlmprune.testing.images import crop_patches, grid_of, paint
from vlmprune.testing.tower import features, in_text_model


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


OUTPUTS = (  # of attention, by the names of its weights
    "attn.out_proj", "attn.o_proj", "attn.proj", "attention.o_proj", "attention.out_proj", "projection_layer",
)  # fmt: skip


def without_attention(model: Any) -> Any:
    """A copy whose tower lets no patch see another."""
    model, silenced = copy.deepcopy(model), 0
    for name, parameter in model.named_parameters():
        if not in_text_model(name) and any(key in name for key in OUTPUTS):
            parameter.data.zero_()
            silenced += 1
    assert silenced >= len(adapter_for(model).encoder_layers())
    return model


def places(patches: list[list[tuple[int, int, int]]], arguments: dict[str, Tensor]) -> list[tuple[int, int, int]]:
    """Every patch of the image, also those that no slot has."""
    pixels = next(value for key, value in arguments.items() if key.startswith("pixel_values"))
    if pixels.dim() <= 3 or grid_of(arguments) is not None:  # rows of patches
        return sorted(place for slot in patches for place in slot)
    return crop_patches(arguments)


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


@seeing
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


@families
def test_what_is_declared_of_a_family_is_what_its_adapter_says(family: str) -> None:
    subject, adapter = FAMILIES[family], adapter_for(built(family))
    modality = "video" if "pixel_values_videos" in subject.image(0)[0] else "image"
    assert adapter.config.model_type == subject.name and adapter.has_cls == subject.cls
    if not blind(family):
        assert adapter.used_layer == range(len(adapter.encoder_layers(modality)))[subject.used]
    assert adapter.tower_rows == subject.tower_rows and (adapter.full_layers is not None) == (subject.window > 0)
    assert is_recurrent(adapter.model) == subject.recurrent


# ---------------------------------------------------------------- how families are found


def package(folder: Path, **files: str) -> list[str]:
    folder.mkdir()
    for name, source in files.items():
        (folder / f"{name}.py").write_text(source)
    return [str(folder)]


def test_families_are_found_by_the_files_of_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    files = {"b": "FAMILIES = {'b': 1, 'b video': 2}", "a": "FAMILIES = {'a': 3}"}
    assert list(declared("found", package(tmp_path / "found", **files)).items()) == [("a", 3), ("b", 1), ("b video", 2)]
    with pytest.raises(UserError, match=r"^'b' is declared by b\.py and by c\.py: rename one\.$"):
        declared("twice", package(tmp_path / "twice", **files, c="FAMILIES = {'b': 4}"))
    with pytest.raises(UserError, match=r"^none\.d declares no family: it needs a dict FAMILIES"):
        declared("none", package(tmp_path / "none", **files, d="FAMILY = {}"))


def test_what_a_family_lacks_is_a_mode_of_the_tests() -> None:
    with pytest.raises(
        UserError,
        match=r"^llava: lacks='static' must be one of 'encoder', 'by hand', 'downsample', 'sampling', 'static cache'",
    ):
        replace(FAMILIES["llava"], lacks={"static": "it does not"})
