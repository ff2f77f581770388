"""Tiny vision encoders without a language model, with random strong weights, as folders that `--model` takes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil

LAYERS, SIDE, PATCH = 4, 48, 8
GRID = SIDE // PATCH
_SMALL = {"hidden_size": 32, "num_hidden_layers": LAYERS, "num_attention_heads": 4, "patch_size": PATCH}
_VISION = {**_SMALL, "intermediate_size": 48}
_TEXT = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 50,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_T: Any = transformers

ENCODERS: dict[str, Callable[[], Any]] = {
    "clip": lambda: _T.CLIPModel(
        _T.CLIPConfig(vision_config={**_VISION, "image_size": SIDE}, text_config=_TEXT, projection_dim=16)
    ),
    "siglip": lambda: _T.SiglipModel(
        _T.SiglipConfig(vision_config={**_VISION, "image_size": SIDE}, text_config=_TEXT)
    ),
    "siglip2": lambda: _T.Siglip2Model(
        _T.Siglip2Config(vision_config={**_VISION, "num_patches": GRID**2}, text_config=_TEXT)
    ),
    "dinov2": lambda: _T.Dinov2Model(_T.Dinov2Config(**_SMALL, image_size=SIDE)),
    "dinov2-registers": lambda: _T.Dinov2WithRegistersModel(
        _T.Dinov2WithRegistersConfig(**_SMALL, image_size=SIDE, num_register_tokens=4)
    ),
    "deit": lambda: _T.DeiTForImageClassificationWithTeacher(_T.DeiTConfig(**_VISION, image_size=SIDE)),
    "vit": lambda: _T.ViTForImageClassification(_T.ViTConfig(**_VISION, image_size=SIDE)),
}  # fmt: skip
WITH_CLS = set(ENCODERS) - {"siglip", "siglip2"}


def strong(model: Any) -> Any:
    """Random weights under which attention is far from uniform."""
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def save_encoder(kind: str, folder: Path) -> Path:
    """Write an encoder with its image processor."""
    strong(ENCODERS[kind]()).save_pretrained(folder)
    if kind == "siglip2":
        Siglip2ImageProcessorPil(patch_size=PATCH, max_num_patches=GRID**2).save_pretrained(folder)
    else:
        side = {"height": SIDE, "width": SIDE}
        CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=side).save_pretrained(folder)
    return folder
