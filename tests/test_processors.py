"""What the families' own processors return, saved and loaded as a checkpoint is: batches of pictures of several shapes.

Videos are not here: transformers' video processors need torchvision, which the tests do without. So do some families'
image processors: `TORCHVISION` runs where that is installed. Pixtral's processor says that it needs it, too, and is
made in memory (`tiny_folder`), as transformers loads none without it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from harness import built, generate
from PIL import Image
from tiny_folder import PROCESSORS, save_family
from torch import Tensor
from transformers.models.smolvlm import processing_smolvlm
from transformers.utils import is_torchvision_available

import vlmprune
from vlmprune.models import adapter_for
from vlmprune.models.processors import load_processor
from vlmprune.runtime.oracle import is_recurrent, masking_oracle
from vlmprune.testing.generic import USUAL

TOLERANCE = 2e-4
SPECS = ("divprune:0.5 > fastv@2:0.5", "hiprune:0.4")
SIZES = ((60, 30), (25, 50), (44, 40))  # width, height
IMAGE_TEXT = {"gemma3": "<start_of_image>"}  # of a picture in a prompt; Qwen's has a token before and after

# family: what the pictures' grids must be, rows x columns x tiles
FAMILIES: dict[str, list[list[tuple[int, int, int]]]] = {
    "llava": [[(6, 6, 1)] * 2, [(6, 6, 1)]],
    "llava_next": [[(4, 4, 3)] * 2, [(4, 4, 5)]],
    "llava_next_video": [[(4, 4, 3)] * 2, [(4, 4, 5)]],
    "llava_onevision": [[(5, 5, 1)] * 2, [(5, 5, 5)]],  # two pictures in a prompt are not cut
    "video_llava": [[(4, 4, 1)] * 2, [(4, 4, 1)]],
    "qwen2_vl": [[(3, 6, 1), (6, 3, 1)], [(4, 5, 1)]],
    "qwen2_5_vl": [[(3, 6, 1), (6, 3, 1)], [(4, 5, 1)]],
    "qwen3_vl": [[(3, 6, 1), (6, 3, 1)], [(4, 5, 1)]],
    "qwen3_5": [[(3, 6, 1), (6, 3, 1)], [(4, 5, 1)]],
    "glm4v": [[(3, 6, 1), (6, 3, 1)], [(4, 5, 1)]],
    "glm46v": [[(3, 6, 1), (6, 3, 1)], [(4, 5, 1)]],
    "glm4v_moe": [[(3, 6, 1), (6, 3, 1)], [(4, 5, 1)]],
    "glm_ocr": [[(3, 6, 1), (6, 3, 1)], [(4, 5, 1)]],
    "llava with Pixtral": [[(4, 8, 1), (8, 4, 1)], [(8, 8, 1)]],
    "mistral3": [[(2, 4, 1), (4, 2, 1)], [(4, 4, 1)]],
    "paddleocr_vl": [[(3, 6, 1), (6, 3, 1)], [(4, 5, 1)]],
    "internvl": [[(3, 3, 3)] * 2, [(3, 3, 5)]],
    "smolvlm": [[(3, 3, 3)] * 2, [(3, 3, 5)]],
    "idefics3": [[(3, 3, 3)] * 2, [(3, 3, 5)]],
    "aya_vision": [[(3, 3, 3)] * 2, [(3, 3, 5)]],
    "ovis2": [[(3, 3, 3)] * 2, [(3, 3, 5)]],
    "gemma3": [[(4, 4, 1)] * 2, [(4, 4, 1)]],
    "paligemma": [[(6, 6, 1)] * 2, [(6, 6, 1)]],
    "idefics2": [[], []],  # behind its resampler there is none
}
TORCHVISION: dict[str, list[list[tuple[int, int, int]]]] = {
    "cohere2_vision": [[(3, 3, 3)] * 2, [(3, 3, 5)]],
    # two tiles and the whole beside a picture that is not cut; four tiles and the whole
    "lfm2_vl": [[(3, 3, 1), (3, 3, 1), (2, 4, 1), (4, 2, 1)], [*[(3, 3, 1)] * 4, (2, 3, 1)]],
}
IN_MEMORY = ("llava with Pixtral", "mistral3")
UNREADABLE = ("idefics2",)  # by methods that read the encoder
OPTIONS: dict[tuple[str, str], tuple[dict[str, Any], list[list[tuple[int, int, int]]]]] = {
    ("smolvlm", "not split"): ({"do_image_splitting": False}, [[(3, 3, 1)] * 2, [(3, 3, 1)]]),
    ("internvl", "not cut"): ({"crop_to_patches": False}, [[(3, 3, 1)] * 2, [(3, 3, 1)]]),
    ("gemma3", "pan and scan"): (  # each crop is an image
        {"do_pan_and_scan": True, "pan_and_scan_min_crop_size": 8, "pan_and_scan_max_num_crops": 2},
        [[(4, 4, 1)] * 6, [(4, 4, 1)]],
    ),
}
CASES = {family: (family, {}, grids) for family, grids in (FAMILIES | TORCHVISION).items()}
CASES |= {f"{family} {name}": (family, options, grids) for (family, name), (options, grids) in OPTIONS.items()}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def picture(number: int) -> Image.Image:
    width, height = SIZES[number]
    return Image.fromarray(np.random.default_rng(number).integers(0, 255, (height, width, 3), dtype=np.uint8))


def batch(family: str, folder: Path, options: dict[str, Any]) -> dict[str, Any]:
    """Two pictures between words beside one."""
    processor = PROCESSORS[family]() if family in IN_MEMORY else load_processor(save_family(family, folder))
    processor.tokenizer.padding_side = "left"
    token = "<img><image></img>" if "qwen" in family else IMAGE_TEXT.get(family, "<image>")
    text = [f"{token} what is {token} color ?", f"{token} w1 w2 w3 w4 w5 w6"]
    images = [[picture(0), picture(1)], [picture(2)]]
    inputs = dict(processor(images=images, text=text, padding=True, return_tensors="pt", **options))
    inputs.pop("labels", None)  # PaliGemma's
    return inputs


def numbers(model: Any, inputs: dict[str, Any], report: Any) -> Tensor:
    """[B, S] number of the image that a column shows, -1 for text."""
    found = torch.full_like(inputs["input_ids"], -1)
    for row, ids in enumerate(inputs["input_ids"]):
        slots = torch.isin(ids, torch.tensor(list(adapter_for(model).placeholder_ids.values())))
        sizes = torch.tensor([len(cells) for cells in report.cells[row]])
        found[row, slots] = torch.arange(len(sizes)).repeat_interleave(sizes)
    return found


@pytest.mark.parametrize("case", CASES)
def test_a_batch_from_the_processor(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    family, options, grids = CASES[case]
    monkeypatch.setattr(processing_smolvlm, "num2words", str)  # a package with which it words the count of frames
    if family in TORCHVISION and not is_torchvision_available():
        pytest.skip("its image processor needs torchvision")
    model = USUAL[family].build() if family in UNREADABLE else built(family)
    inputs = batch(family, tmp_path, options)
    vanilla = generate(model, inputs)
    with vlmprune.prune(model, "divprune", keep=1.0) as session:
        same = generate(model, inputs)
    assert torch.equal(vanilla[0], same[0]) and torch.equal(vanilla[1], same[1])
    assert [[tuple(grid) for grid in row if grid] for row in session.last.grids] == grids
    for spec in SPECS[:1] if family in UNREADABLE else SPECS:
        with vlmprune.prune(model, spec, positions="original") as session:
            tokens, logits = generate(model, inputs)
            again = generate(model, vlmprune.encode_images(model, inputs, [spec]).inputs())
        assert torch.equal(tokens, again[0]) and float((logits - again[1]).abs().max()) < 1e-5
        if not is_recurrent(model):
            expected = masking_oracle(model, inputs, tokens, session.last, image=numbers(model, inputs, session.last))
            assert float((logits - expected).abs().max()) < TOLERANCE


def test_images_are_encoded_once_under_their_older_name(tmp_path: Path) -> None:
    """Video-LLaVA's processor returns pixel_values_images, which the model calls pixel_values."""
    inputs = batch("video_llava", tmp_path, {})
    assert "pixel_values_images" in inputs
    encoded = vlmprune.encode_images(built("video_llava"), inputs, ["hiprune"]).inputs()
    assert "image" in encoded["mm_encoder_outputs"] and "pixel_values_images" not in encoded
