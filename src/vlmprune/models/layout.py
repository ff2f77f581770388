"""Checks whether a model has transformers' usual layout, and what it lacks."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from vlmprune.models.base import attention_of

TEXT_MODELS = ("language_model", "text_model")
ATTENTION_KINDS = ("full_attention", "sliding_attention")
RECURRENT_KINDS = ("linear_attention", "conv")  # layers with a state instead of keys per token
CHUNKED = "chunked_attention"  # layers whose attention ends at the borders of chunks of the prompt
INDEXED = "indexed_attention"  # layers that choose by an index of their own which keys a token sees


def misfit(inner: Any) -> str | None:
    """What a multimodal model lacks, or why its decoder cannot be cut; None if the model can be pruned."""
    text, config = text_model_of(inner), inner.config
    if text is None:
        return f"looked for {' or '.join(TEXT_MODELS)} in its {type(inner).__name__}, found neither"
    if not hasattr(inner, "get_image_features"):
        return f"looked for get_image_features in its {type(inner).__name__}, found none"
    indexed = only_before(config.get_text_config()) is not None
    for part in ("layers",) if indexed else ("layers", "rotary_emb"):
        if not hasattr(text, part):
            return f"looked for {part} in its {type(text).__name__}, found none"
    if placeholder(config, "image") is None:
        return "looked for image_token_id or image_token_index in its config, found neither"
    return _uncuttable(text, config.get_text_config())


def only_before(text_config: Any) -> str | None:
    """Why tokens can be cut before the language model only; None where they can inside it, if anywhere."""
    if INDEXED in (getattr(text_config, "layer_types", None) or ()):
        return "its decoder layers choose the keys that a token sees by an index of their own"
    return None


def _uncuttable(text: Any, config: Any) -> str | None:
    if "inputs_embeds" not in inspect.signature(text.forward).parameters:
        return f"looked for inputs_embeds among the arguments of its {type(text).__name__}, found none"
    if getattr(config, "num_kv_shared_layers", None) or "reuse" in (getattr(config, "kv_sharing_modes", None) or ()):
        return "its decoder layers share keys and values, so a layer cannot hold fewer tokens than the one before"
    usual = CHUNKED if getattr(config, "attention_chunk_size", None) else "full_attention"
    kinds = getattr(config, "layer_types", None) or [usual] * len(text.layers)
    if unknown := sorted({*kinds} - {*ATTENTION_KINDS, *RECURRENT_KINDS, INDEXED}):
        return f"it has decoder layers of a kind unknown to vlmprune ({', '.join(unknown)})"
    if only_before(config):  # what they are given is left alone
        return None
    for number, layer in enumerate(text.layers):
        arguments = inspect.signature(layer.forward).parameters
        if "position_embeddings" not in arguments:
            return "looked for position_embeddings among the arguments of its decoder layers, found none"
        if crossing := [name for name, _ in layer.named_children() if "cross" in name]:
            return f"decoder layer {number} looks at images by {crossing[0]}, which no cut of the prompt reaches"
        if kinds[number] not in ATTENTION_KINDS:
            continue
        if not attends([layer]):
            return f"looked for self_attn, attn or attention in decoder layer {number}, found none"
        if not getattr(attention_of(layer), "is_causal", True):
            return f"decoder layer {number} attends in both directions, and vlmprune makes causal masks"
    return None


def text_model_of(inner: Any) -> Any:
    found = (getattr(inner, name, None) for name in TEXT_MODELS)
    return next((module for module in found if isinstance(module, nn.Module)), None)


def placeholder(config: Any, modality: str) -> int | None:
    """The token id that stands for a visual slot, by the two names that configs use."""
    found = (getattr(config, f"{modality}_token_{ending}", None) for ending in ("id", "index"))
    return next((token for token in found if token is not None), None)


def attends(layers: Any) -> bool:
    """Whether each of these layers has an attention module that can be listened to."""
    try:
        return len(layers) > 0 and all(hasattr(attention_of(layer), "config") for layer in layers)
    except AttributeError:
        return False
