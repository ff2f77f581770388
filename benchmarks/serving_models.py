"""Folders of models without weights for benchmarks/serving.py: vLLM draws them itself (`--load-format dummy`)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from vlmprune.assets import embedded_path

HEAD = 32  # numbers; vLLM's attention on CPUs takes no fewer
SIDE = 336  # pixels
PATCH = {"llava": 14, "qwen2_5_vl": 7}  # of which qwen2_5_vl merges 2 x 2: 24 x 24 visual tokens either way
MODELS = tuple(PATCH)


def save(model: str, folder: Path, layers: int, width: int) -> Path:
    """The folder of a model in the shape of an embedded one, with its tokenizer.

    Args:
        layers, width: of the language model.
    """
    source = embedded_path(model)
    folder.mkdir()
    for path in source.iterdir():
        if path.name.startswith(("chat", "tokenizer", "generation")):
            shutil.copy(path, folder)
        elif path.name.startswith("video"):  # vLLM's own model tries one out
            videos = {**json.loads(path.read_text()), "patch_size": PATCH[model]}
            (folder / path.name).write_text(json.dumps(videos))
    config, processor = (json.loads((source / name).read_text()) for name in ("config.json", "processor_config.json"))
    text, vision = config["text_config"], config["vision_config"]
    heads = width // HEAD
    text |= {
        "hidden_size": width, "num_hidden_layers": layers, "intermediate_size": 8 * width // 3 // HEAD * HEAD,
        "num_attention_heads": heads, "num_key_value_heads": heads, "max_position_embeddings": 2048, "head_dim": HEAD,
    }  # fmt: skip
    if "layer_types" in text:
        text["layer_types"] = ["full_attention"] * layers
    vision["patch_size"] = PATCH[model]
    _resize(model, vision, processor, width)
    config["image_seq_length"] = (SIDE // PATCH[model]) ** 2
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "processor_config.json").write_text(json.dumps(processor))
    return folder


def _resize(model: str, vision: dict[str, Any], processor: dict[str, Any], width: int) -> None:
    """Let pictures be `SIDE` pixels a side."""
    images = processor["image_processor"]
    if model == "llava":
        vision["image_size"] = SIDE
        images |= {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}}
        processor["patch_size"] = PATCH[model]
    else:
        vision |= {"out_hidden_size": width, "depth": 2, "fullatt_block_indexes": [1], "window_size": 8 * PATCH[model]}
        images |= {"patch_size": PATCH[model], "size": {"shortest_edge": SIDE**2, "longest_edge": SIDE**2}}
