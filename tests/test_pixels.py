"""The pixels behind a slot, on every family: each patch is painted in a shade of its own and found where it shows."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from harness import built
from PIL import Image
from torch import Tensor

import vlmprune
from vlmprune.core.errors import UserError
from vlmprune.core.method import Method
from vlmprune.core.needs import Need
from vlmprune.core.recipe import Recipe, Stage
from vlmprune.core.signals import Pixels
from vlmprune.core.view import ImageView, ModelInfo
from vlmprune.models import adapter_for
from vlmprune.models.base import CLIP
from vlmprune.models.generic import GenericAdapter
from vlmprune.testing import FAMILIES, Family, prompt
from vlmprune.testing.images import Arguments, Place, paint

PATCH = 4 * 4 * 3
SAMPLES = [[0, 1], [2], [3]]


@dataclass
class Look(Method):
    """Keeps the pixels that it is shown."""

    name, stage = "look", "vision"
    seen: list[tuple[Tensor, Tensor, Tensor]] = field(default_factory=list)

    def needs(self, info: ModelInfo) -> dict[str, Need]:
        return {"raw": Pixels(), "normalized": Pixels(normalized=True)}

    def select(self, view: ImageView) -> Tensor:
        self.seen.append((view.slots, view["raw"], view["normalized"]))
        return torch.arange(view.keep)


def shaded(subject: Family, shades: dict[int, dict[Place, float]]) -> Family:
    """A family whose pictures, by seed, have patches in these shades."""

    def image(seed: int) -> tuple[Arguments, list[int]]:
        arguments, ids = subject.image(seed)
        for place, shade in shades[seed].items():
            arguments = paint(arguments, *place, shade)
        return arguments, ids

    return replace(subject, kind=replace(subject.kind, image=image))


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_a_slot_is_shown_with_the_pixels_of_its_patches_and_no_others(family: str) -> None:
    torch.set_num_threads(1)
    subject = FAMILIES[family]
    seeds = [seed for sample in SAMPLES for seed in sample]
    places = {seed: sorted({place for slot in subject.patches(seed) for place in slot}) for seed in seeds}
    shades = {seed: {place: 0.1 + 0.01 * i for i, place in enumerate(places[seed])} for seed in seeds}
    look = Look()
    with vlmprune.prune(built(family), Recipe((Stage(look, 0.5),))) as session:
        built(family)(**prompt(shaded(subject, shades), [[*sample] for sample in SAMPLES]))
    assert session.last.layers == {}  # no encoder layer was read
    mean, std = (torch.tensor(values) for values in adapter_for(built(family)).normalisation)
    assert len(look.seen) == len(seeds)
    for seed, (slots, raw, normalized) in zip(seeds, look.seen, strict=True):
        patches = subject.patches(seed)
        assert slots.tolist() == [slot for slot, behind in enumerate(patches) if behind]
        assert raw.dtype == normalized.dtype == torch.float32 and raw.shape == normalized.shape
        resized = raw.shape[1] == PATCH and any(len(behind) > 1 for behind in patches)
        for slot, pixels, values in zip(slots.tolist(), raw, normalized, strict=True):
            own = torch.tensor([shades[seed][place] for place in patches[slot]])
            if subject.kind.views:  # a slot at the edge may lack patches: zeros
                own = torch.nn.functional.pad(own, (0, subject.kind.side**2 - len(own)))
            if resized:  # a mean of the patches that reach it, weighted by how much they do
                assert own.min() - 1e-5 <= values.min() and values.max() <= own.max() + 1e-5
                assert len(own) > 1 or torch.allclose(values, own)
            else:
                frames = subject.kind.frames
                assert len(values) == len(own) * PATCH * frames
                assert torch.equal(values.sort().values, own.repeat_interleave(PATCH * frames).sort().values)
            channels = set(((own[:, None] * std + mean).flatten() * 1e4).round().long().tolist())
            if not resized:
                assert {int(value) for value in (pixels * 1e4).round().long().unique()} == channels


@torch.no_grad()
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_the_normalisation_is_that_of_the_processor_beside_the_weights(name: str) -> None:
    """The embedded models have another than their families are published with."""
    model, processor = vlmprune.load_embedded(name)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (112, 112, 3), dtype=np.uint8))
    pixels = processor.image_processor(images=image, return_tensors="pt")
    normalized = torch.cat(adapter_for(model).pixel_rows("image", dict(pixels), normalized=True)).flatten()
    raw = torch.cat(adapter_for(model).pixel_rows("image", dict(pixels), normalized=False)).flatten()
    assert torch.allclose(raw, 0.5 * normalized + 0.5, atol=1e-6)
    assert torch.allclose(raw.sort().values[[0, -1]], torch.tensor([0.0, 1.0]), atol=0.02)
    model.config._name_or_path = ""
    assert adapter_for(model).own_normalisation == adapter_for(model).normalisation == CLIP


def test_a_family_whose_patches_are_unknown_is_refused_in_words() -> None:
    with pytest.raises(UserError, match="visual token of llava"):
        GenericAdapter(built("llava"), built("llava").model).pixel_rows("image", {}, normalized=False)
