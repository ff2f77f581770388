"""Tiny models of every family, built from config in memory, with strong weights.

Default initialisation leaves attention nearly uniform, and most mask bugs would stay under any tolerance.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    SiglipVisionConfig,
)

VOCABULARY = 96
IMAGE, VIDEO, VISION_START, VISION_END, PAD = 90, 91, 92, 93, 0
SUPPRESSED = [IMAGE, VIDEO, VISION_START, VISION_END]  # a random model would generate placeholders
LAYERS = 4


def strengthen(model: torch.nn.Module, seed: int = 0) -> Any:
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "norm" in name and name.endswith("weight"):
            parameter.data = 1 + 0.1 * torch.randn(parameter.shape, generator=generator)
        else:
            parameter.data = 0.12 * torch.randn(parameter.shape, generator=generator)
    model.generation_config.suppress_tokens = SUPPRESSED
    model.generation_config.pad_token_id = PAD
    model.generation_config.eos_token_id = None
    return model.eval()


def llava(attention: str = "sdpa") -> LlavaForConditionalGeneration:
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=5, num_attention_heads=4, image_size=24, patch_size=4
    )
    return _llava(LlavaConfig(vision_config=vision, text_config=_llama(), image_token_id=IMAGE), attention)


def llava_siglip(attention: str = "sdpa") -> LlavaForConditionalGeneration:
    """Without a CLS token, and with the last layer's features."""
    vision = SiglipVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=5, num_attention_heads=4, image_size=24, patch_size=4
    )
    config = LlavaConfig(
        vision_config=vision, text_config=_llama(), image_token_id=IMAGE, vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )  # fmt: skip
    return _llava(config, attention)


def _llama() -> LlamaConfig:
    return LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=LAYERS, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, pad_token_id=PAD, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip


def _llava(config: LlavaConfig, attention: str) -> LlavaForConditionalGeneration:
    config._attn_implementation = attention
    return strengthen(LlavaForConditionalGeneration(config))


def qwen2_5_vl(attention: str = "sdpa") -> Qwen2_5_VLForConditionalGeneration:
    vision = {
        "depth": 4, "hidden_size": 32, "intermediate_size": 48, "num_heads": 4, "patch_size": 4,
        "spatial_merge_size": 2, "window_size": 16, "fullatt_block_indexes": [1, 3], "out_hidden_size": 32,
        "temporal_patch_size": 2, "in_channels": 3,
    }  # fmt: skip
    text = {
        "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": LAYERS,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
        "tie_word_embeddings": False, "pad_token_id": PAD, "bos_token_id": 1, "eos_token_id": 2,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]},
    }  # fmt: skip
    config = Qwen2_5_VLConfig(
        vision_config=vision, text_config=text, image_token_id=IMAGE, video_token_id=VIDEO,
        vision_start_token_id=VISION_START, vision_end_token_id=VISION_END,
    )  # fmt: skip
    config._attn_implementation = attention
    return strengthen(Qwen2_5_VLForConditionalGeneration(config))


def _text(length: int, seed: int) -> list[int]:
    return torch.randint(3, 80, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


@dataclass
class Family:
    """A family for the test matrix.

    Attributes:
        build: model by attention implementation.
        image: arguments and placeholder ids of one image, by seed: ({argument: tensor}, ids).
        slots: visual slots of an image, by seed.
    """

    name: str
    build: Callable[..., Any]
    image: Callable[[int], tuple[dict[str, Tensor], list[int]]]

    def slots(self, seed: int) -> int:
        return self.image(seed)[1].count(IMAGE)


def _llava_image(seed: int) -> tuple[dict[str, Tensor], list[int]]:
    pixels = torch.randn(1, 3, 24, 24, generator=torch.Generator().manual_seed(100 + seed))
    return {"pixel_values": pixels}, [IMAGE] * 36


def _qwen_image(seed: int) -> tuple[dict[str, Tensor], list[int]]:
    rows, cols = [(8, 12), (12, 8), (10, 10)][seed % 3]
    patches = torch.randn(rows * cols, 3 * 2 * 4 * 4, generator=torch.Generator().manual_seed(100 + seed))
    ids = [VISION_START, *[IMAGE] * (rows * cols // 4), VISION_END]
    return {"pixel_values": patches, "image_grid_thw": torch.tensor([[1, rows, cols]])}, ids


FAMILIES = {
    "llava": Family("llava", llava, _llava_image),
    "llava with SigLIP": Family("llava", llava_siglip, _llava_image),
    "qwen2_5_vl": Family("qwen2_5_vl", qwen2_5_vl, _qwen_image),
}


def prompt(family: Family, samples: list[list[int | None]], seed: int = 0, text: int = 7) -> dict[str, Tensor]:
    """A left-padded batch. A sample is a list of image seeds; text stands before, between and after the images.

    `None` stands for no image (a longer stretch of text).
    """
    rows, images = [], []
    for number, sample in enumerate(samples):
        ids = [1, *_text(text - 2, seed + 10 * number)]
        for place, image_seed in enumerate(sample):
            if image_seed is not None:
                arguments, placeholder = family.image(image_seed)
                images.append(arguments)
                ids += placeholder
            ids += _text(text - 3 + number + place, seed + 10 * number + place + 1)
        rows.append(ids)
    width = max(map(len, rows))
    inputs = {
        "input_ids": torch.tensor([[PAD] * (width - len(row)) + row for row in rows]),
        "attention_mask": torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows]),
    }
    for name in images[0] if images else []:
        inputs[name] = torch.cat([arguments[name] for arguments in images])
    if "image_grid_thw" in inputs:
        inputs["mm_token_type_ids"] = (inputs["input_ids"] == IMAGE).int()
    return inputs
