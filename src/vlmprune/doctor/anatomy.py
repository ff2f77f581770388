"""What a model is made of, in lines for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import groupby
from typing import Any

from transformers.utils import is_flash_attn_2_available, is_flash_attn_3_available, is_torch_flex_attn_available

from vlmprune.models.base import Adapter
from vlmprune.models.generic import GenericAdapter

KINDS = {
    "full_attention": "full attention",
    "sliding_attention": "sliding window of {window} tokens",
    "chunked_attention": "attention within chunks of {chunk} tokens",
    "linear_attention": "recurrent (no keys per token)",
}


def describe_model(name: str, adapter: Adapter, inputs: Mapping[str, Any]) -> list[str]:
    """Family, class, precision, attention, towers and decoder layers."""
    model: Any = adapter.model
    own = "the generic adapter, as no other fits it" if isinstance(adapter, GenericAdapter) else "its own adapter"
    dtypes = sorted({str(parameter.dtype).removeprefix("torch.") for parameter in model.parameters()})
    return [
        f"{name}: {type(model).__name__} (family {adapter.family}, {own}), {' and '.join(dtypes)} on {model.device}",
        f"attention: {_attention(adapter)}",
        *_towers(adapter),
        f"language model: {len(adapter.decoder_layers)} decoder layers: {'; '.join(_decoder(adapter))}",
        *_two_way(adapter, inputs),
    ]


def _attention(adapter: Adapter) -> str:
    text = adapter.text_model.config._attn_implementation
    configs: list[Any] = [module.config for module in adapter.encoder_attentions()]
    towers = {config._attn_implementation for config in configs}
    where = f"{text} in the language model"
    if towers:
        where += f", {' and '.join(sorted(towers))} in the vision tower"
    usable, missing = attention_backends(adapter.model)
    others = [backend for backend in usable if {backend} != {text, *towers}]
    where += f"; this model can also use {', '.join(others)} here" if others else ""
    return where + (f"; not installed: {', '.join(missing)}" if missing else "")


def attention_backends(model: Any) -> tuple[list[str], list[str]]:
    """Backends that the model supports: those that this environment has, and those that it does not have."""
    flash, flex = getattr(model, "_supports_flash_attn", False), getattr(model, "_supports_flex_attn", False)
    known = {
        "eager": (True, True),
        "sdpa": (getattr(model, "_supports_sdpa", False), True),
        "flex_attention": (flex, is_torch_flex_attn_available()),
        "flash_attention_2": (flash, is_flash_attn_2_available()),
        "flash_attention_3": (flash, is_flash_attn_3_available()),
    }
    usable = [name for name, (supported, present) in known.items() if supported and present]
    return usable, [name for name, (supported, present) in known.items() if supported and not present]


def _towers(adapter: Adapter) -> Iterator[str]:
    """A line for each tower; images and videos may share one."""
    seen: dict[int, list[str]] = {}
    for modality in adapter.feature_functions:
        layers = adapter.encoder_layers(modality)
        seen.setdefault(id(layers[0]) if len(layers) else 0, []).append(f"{modality}s")
    for tower, modalities in seen.items():
        of = " and ".join(modalities)
        if not tower:
            yield f"vision tower of {of}: no stack of attention layers found"
            continue
        parts = [f"{len(adapter.encoder_layers())} layers, the projector reads layer {adapter.used_layer}"]
        parts.append(
            "with a CLS token" if adapter.has_cls else "no CLS token (CLS-attention methods use received attention)"
        )
        if adapter.full_layers is not None:
            parts.append(f"full attention in layers {ranges(list(adapter.full_layers))}, windows elsewhere")
        yield f"vision tower of {of}: {'; '.join(parts)}"


def _decoder(adapter: Adapter) -> Iterator[str]:
    """Decoder layers by kind, in the order in which the kinds first occur."""
    kinds = [adapter.layer_kind(layer) for layer in range(len(adapter.decoder_layers))]
    for kind in dict.fromkeys(kinds):
        layers = [layer for layer, own in enumerate(kinds) if own == kind]
        sizes = {"window": "sliding_window", "chunk": "attention_chunk_size"}
        found = {word: getattr(adapter.text_config, name, None) for word, name in sizes.items()}
        words = KINDS.get(kind, kind).format(**found)
        yield f"{words} in {'all' if len(layers) == len(kinds) else f'layers {ranges(layers)}'}"


def _two_way(adapter: Adapter, inputs: Mapping[str, Any]) -> Iterator[str]:
    blocks = adapter.blocks(inputs)
    if blocks is not None and bool((blocks >= 0).any()):
        ids = list(adapter.placeholder_ids.values())
        seen = inputs["input_ids"][blocks.to(inputs["input_ids"].device) >= 0]
        whose = "tokens of an image" if all(int(token) in ids for token in seen.unique()) else "tokens of the prompt"
        yield f"{whose} see each other in both directions"


def ranges(numbers: list[int]) -> str:
    """[0, 1, 2, 5] as "0-2, 5"."""
    runs = [[number for _, number in run] for _, run in groupby(enumerate(numbers), lambda place: place[1] - place[0])]
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
