"""Images in one row of a tower, which a mask keeps apart: where they begin and end."""

from __future__ import annotations

import pytest
import torch
from harness import built, inputs_of
from torch import Tensor

import vlmprune
from vlmprune.core.signals import ReceivedAttention
from vlmprune.runtime.taps import borders_of
from vlmprune.testing import FAMILIES
from vlmprune.testing.tower import Expected, tower_layers


def apart(*sizes: int) -> Tensor:
    return torch.block_diag(*(torch.ones(size, size) for size in sizes)).bool()[None, None]


@pytest.mark.parametrize("sizes", [(3, 2), (1, 1, 4), (2, 5, 1)])
def test_borders(sizes: tuple[int, ...]) -> None:
    found = borders_of(apart(*sizes))
    assert found is not None and found.diff().tolist() == [*sizes] and int(found[0]) == 0


def test_other_masks_have_none() -> None:
    padding = torch.ones(5, 5).bool()
    padding[:, 3:] = False  # of one picture: nobody sees the last two, who see the others
    between = apart(2, 3).clone()
    between[0, 0, 0, 4] = True
    others = [None, apart(4), padding[None, None], between, torch.ones(4, 4).bool().tril()[None, None]]
    assert all(borders_of(mask) is None for mask in others)
    assert borders_of(apart(2, 2).expand(2, 1, 4, 4)) is None and borders_of(apart(4)[:, :, :2]) is None


@torch.no_grad()
def test_an_image_receives_attention_of_its_own_patches_alone() -> None:
    """Else each image's share would shrink with the number of images beside it."""
    torch.set_num_threads(1)
    family, model = FAMILIES["mistral3"], built("mistral3")
    inputs = inputs_of("mistral3", [[0, 1, 2]])
    with vlmprune.prune(model, "hiprune", keep=3):
        record = model.model.get_image_features(inputs["pixel_values"], inputs["image_sizes"]).vlmprune_record
    assert [len(image.features) for image in record.images] == [family.slots(seed) for seed in range(3)]
    for seed, image in enumerate(record.images):
        layers, _ = tower_layers(built("mistral3", "eager"), family.image(seed)[0])
        needs = [need for need in image.signals if isinstance(need, ReceivedAttention)]
        assert needs
        for need in needs:
            expected = Expected(family, seed, layers[need.layer]).received  # type: ignore[index]
            torch.testing.assert_close(image.signals[need], expected, atol=2e-6, rtol=0)
