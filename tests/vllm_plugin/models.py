"""Small models with random strong weights that vLLM can run: its attention on CPUs wants heads of 32 numbers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from transformers import AutoConfig, Qwen2VLConfig, Qwen2VLForConditionalGeneration

from vlmprune.assets import embedded_names, embedded_path
from vlmprune.testing.weights import strengthen


def place_of(model: str, folder: Path) -> Path:
    """The folder of an embedded model, or of one that is made in `folder` once."""
    if model in embedded_names():
        return embedded_path(model)
    made = folder / model
    return made if made.is_dir() else SAVED[model](made)


def save_qwen2_vl(folder: Path) -> Path:
    """Qwen2-VL with the tokenizer and the processor of the embedded Qwen2.5-VL."""
    source = embedded_path("qwen2_5_vl")
    other = AutoConfig.from_pretrained(source)
    text = {**other.text_config.to_dict(), "model_type": "qwen2_vl_text", "num_hidden_layers": 3}
    del text["layer_types"]
    vision = {
        "depth": 3, "embed_dim": 64, "hidden_size": text["hidden_size"], "num_heads": 2, "mlp_ratio": 2,
        "patch_size": 5, "spatial_merge_size": 2, "temporal_patch_size": 2, "in_channels": 3,
    }  # fmt: skip
    ids = {
        f"{name}_token_id": getattr(other, f"{name}_token_id")
        for name in ("image", "video", "vision_start", "vision_end")
    }
    config = Qwen2VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True, **ids)
    torch.manual_seed(0)
    model = strengthen(Qwen2VLForConditionalGeneration(config))
    model.generation_config.eos_token_id = 3
    model.generation_config.suppress_tokens = None  # vLLM would not read it
    model.save_pretrained(folder)
    for path in source.iterdir():
        if path.name.startswith(("chat", "tokenizer", "processor", "video")):
            shutil.copy(path, folder)
    settings = json.loads((folder / "processor_config.json").read_text())
    (folder / "processor_config.json").write_text(json.dumps({**settings, "processor_class": "Qwen2VLProcessor"}))
    return folder


SAVED = {"qwen2_vl": save_qwen2_vl}
