"""Small models with random strong weights that vLLM can run: its attention on CPUs wants heads of 32 numbers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from vlmprune.assets import embedded_names, embedded_path
from vlmprune.testing.weights import strengthen

LAYERS = 3
TOWER = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 2}
TILE, PATCH = 56, 14
Made = tuple[Any, dict[str, Any]]  # a model's config, and what is different in the processor of the source


def place_of(model: str, folder: Path) -> Path:
    """The folder of an embedded model, or of one that is made in `folder` once."""
    if model in embedded_names():
        return embedded_path(model)
    source, name, of = SAVED[model]
    made = folder / model
    return made if made.is_dir() else _save(name, of(AutoConfig.from_pretrained(embedded_path(source))), source, made)


def positions_of(model: str) -> str | None:
    """What vLLM needs to be told: it counts positions one by one, and methods keep them on InternVL."""
    return "compact" if model == "internvl" else None


def fps_of(model: str) -> float | None:
    """Of a video, for a processor that writes its times into the prompt."""
    return 2.0 if model == "qwen3_vl" else None


def qwen2_vl(source: Any) -> Made:
    text = {**source.text_config.to_dict(), "model_type": "qwen2_vl_text", "num_hidden_layers": LAYERS}
    del text["layer_types"]
    vision = {
        "depth": 3, "embed_dim": 64, "hidden_size": text["hidden_size"], "num_heads": 2, "mlp_ratio": 2,
        "patch_size": 5, "spatial_merge_size": 2, "temporal_patch_size": 2, "in_channels": 3,
    }  # fmt: skip
    return {"text_config": text, "vision_config": vision, **_ids(source)}, {}


def qwen3_vl(source: Any) -> Made:
    """DeepStack at three levels, and M-RoPE whose axes take turns."""
    text = {**source.text_config.to_dict(), "model_type": "qwen3_vl_text", "num_hidden_layers": 4, "head_dim": 32}
    del text["layer_types"]
    text["rope_parameters"] = {**text["rope_parameters"], "mrope_section": [6, 5, 5], "mrope_interleaved": True}
    vision = {
        "depth": 4, "hidden_size": 64, "intermediate_size": 128, "num_heads": 2, "out_hidden_size": text["hidden_size"],
        "patch_size": 5, "spatial_merge_size": 2, "temporal_patch_size": 2, "in_channels": 3,
        "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1, 2],
    }  # fmt: skip
    return {"text_config": text, "vision_config": vision, **_ids(source)}, {}


def _ids(source: Any) -> dict[str, int]:
    names = ("image", "video", "vision_start", "vision_end")
    return {f"{name}_token_id": getattr(source, f"{name}_token_id") for name in names}


def qwen2_5_vl(source: Any) -> Made:
    """With the rotary base that vLLM's own encoder takes for granted, which is not that of the embedded model."""
    text = {**source.text_config.to_dict(), "num_hidden_layers": LAYERS}
    del text["layer_types"]
    rope = {"rope_type": "axial", "rope_theta": 10000.0}
    return {
        "text_config": text, "vision_config": {**source.vision_config.to_dict(), "rope_parameters": rope},
        **_ids(source),
    }, {}  # fmt: skip


def llava(source: Any) -> Made:
    text = {**source.text_config.to_dict(), "num_hidden_layers": LAYERS}
    names = ("image_token_index", "image_seq_length", "vision_feature_layer", "vision_feature_select_strategy")
    return {
        "text_config": text, "vision_config": source.vision_config.to_dict(),
        **{name: getattr(source, name) for name in names},
    }, {}  # fmt: skip


def llava_next(source: Any) -> Made:
    """Tiles of 4 x 4 patches."""
    pinpoints = [[TILE, 2 * TILE], [2 * TILE, TILE], [2 * TILE, 2 * TILE], [TILE, 3 * TILE]]
    config = {
        "text_config": {**source.text_config.to_dict(), "num_hidden_layers": LAYERS},
        "vision_config": {
            **TOWER, "model_type": "clip_vision_model", "image_size": TILE, "patch_size": PATCH, "projection_dim": 64,
        },
        "image_grid_pinpoints": pinpoints, "image_token_index": source.image_token_index,
        "image_seq_length": (TILE // PATCH) ** 2,
    }  # fmt: skip
    images = {
        "image_processor_type": "LlavaNextImageProcessor", "image_grid_pinpoints": pinpoints,
        "size": {"shortest_edge": TILE}, "crop_size": {"height": TILE, "width": TILE},
    }  # fmt: skip
    return config, {"patch_size": PATCH, "image_processor": images}


def internvl(source: Any) -> Made:
    """Tiles of 4 x 4 slots, each of 2 x 2 patches."""
    text = {**source.text_config.to_dict(), "model_type": "qwen2", "num_hidden_layers": LAYERS}
    del text["layer_types"]
    text["rope_parameters"] = {"rope_type": "default", "rope_theta": 100.0}
    config = {
        "text_config": text, "vision_config": {**TOWER, "image_size": TILE, "patch_size": TILE // 8},
        "image_token_id": source.image_token_id, "image_seq_length": 16,
    }  # fmt: skip
    images = {
        "image_processor_type": "GotOcr2ImageProcessor", "size": {"height": TILE, "width": TILE}, "max_patches": 4,
    }  # fmt: skip
    return config, {"image_seq_length": 16, "image_processor": images}


def _save(name: str, made: Made, source: str, folder: Path) -> Path:
    """With strong weights, beside the tokenizer and the processor of a source, which are told what is different."""
    config, processor = made
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(tie_word_embeddings=True, **config)
    model = strengthen(getattr(transformers, f"{name}ForConditionalGeneration")(config))
    model.generation_config.eos_token_id = 3
    model.generation_config.suppress_tokens = None  # vLLM would not read it
    model.save_pretrained(folder)
    if name == "Llava":
        _name_as_before(folder / "model.safetensors")
    known = {
        path.name: path.read_text()
        for path in embedded_path(source).iterdir()
        if path.name.startswith(("chat", "tokenizer", "processor", "video"))
    }
    settings = json.loads(known["processor_config.json"])
    images = settings["image_processor"] | processor.pop("image_processor", {})
    settings |= {**processor, "processor_class": f"{name}Processor", "image_processor": images}
    written = known | {"processor_config.json": json.dumps(settings)}
    if name == "InternVL":
        written |= _in_its_words(written)
    if name == "Qwen3VL":
        videos = json.loads(known["video_preprocessor_config.json"]) | {"video_processor_type": "Qwen3VLVideoProcessor"}
        written |= {"video_preprocessor_config.json": json.dumps(videos)}
    for own, text in written.items():
        (folder / own).write_text(text)
    return folder


def _name_as_before(file: Path) -> None:
    """Give weights the names that they have on the hub: vLLM's own LLaVA does not know transformers' newer ones."""
    weights = load_file(file)
    tower, before = "vision_tower.", "vision_tower.vision_model."
    save_file({name.replace(tower, before): weight for name, weight in weights.items()}, file, {"format": "pt"})


def _in_its_words(known: dict[str, str]) -> dict[str, str]:
    """InternVL's processor asks the tokenizer for the tokens around an image, and writes these itself."""
    tokenizer = json.loads(known["tokenizer_config.json"])
    start, image, end = "<|vision_start|>", "<|image_pad|>", "<|vision_end|>"
    tokenizer |= {"start_image_token": start, "context_image_token": image, "end_image_token": end}
    return {
        "tokenizer_config.json": json.dumps(tokenizer),
        "chat_template.jinja": known["chat_template.jinja"].replace(start + image + end, image),
        "video_preprocessor_config.json": json.dumps({"video_processor_type": "InternVLVideoProcessor"}),
    }


SAVED: dict[str, tuple[str, str, Callable[[Any], Made]]] = {  # source, name in transformers, configs
    "usual_llava": ("llava", "Llava", llava),
    "usual_qwen2_5_vl": ("qwen2_5_vl", "Qwen2_5_VL", qwen2_5_vl),
    "llava_next": ("llava", "LlavaNext", llava_next),
    "internvl": ("qwen2_5_vl", "InternVL", internvl),
    "qwen2_vl": ("qwen2_5_vl", "Qwen2VL", qwen2_vl),
    "qwen3_vl": ("qwen2_5_vl", "Qwen3VL", qwen3_vl),
}
