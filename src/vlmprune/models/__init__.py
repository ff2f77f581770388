"""Adapters: one per model family, mostly data."""

from __future__ import annotations

import ast
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from vlmprune.core.errors import UserError

if TYPE_CHECKING:
    from vlmprune.models.base import Adapter

FAMILIES: dict[str, str] = {  # config.model_type -> adapter
    "gemma3": "vlmprune.models.gemma3:Gemma3Adapter",
    "idefics3": "vlmprune.models.smolvlm:Idefics3Adapter",
    "internvl": "vlmprune.models.internvl:InternVLAdapter",
    "llava": "vlmprune.models.llava:LlavaAdapter",
    "llava_next": "vlmprune.models.llava_next:LlavaNextAdapter",
    "llava_onevision": "vlmprune.models.llava_onevision:LlavaOnevisionAdapter",
    "paligemma": "vlmprune.models.paligemma:PaliGemmaAdapter",
    "qwen2_vl": "vlmprune.models.qwen2_vl:Qwen2VLAdapter",
    "qwen2_5_vl": "vlmprune.models.qwen2_5_vl:Qwen25VLAdapter",
    "qwen3_vl": "vlmprune.models.qwen2_vl:Qwen3VLAdapter",
    "qwen3_vl_moe": "vlmprune.models.qwen2_vl:Qwen3VLAdapter",
    "qwen3_5": "vlmprune.models.qwen2_vl:Qwen35Adapter",
    "qwen3_5_moe": "vlmprune.models.qwen2_vl:Qwen35Adapter",
    "smolvlm": "vlmprune.models.smolvlm:SmolVLMAdapter",
    "video_llava": "vlmprune.models.video_llava:VideoLlavaAdapter",
}


def summary(adapter: str) -> str:
    """What is particular about a family, in one line: its adapter's docstring, or else that of the adapter's file.

    Args:
        adapter: module:class, as in `FAMILIES`. Its file is read, not imported, since that would import its model.
    """
    module, _, name = adapter.partition(":")
    spec: Any = find_spec(module)
    tree = ast.parse(spec.loader.get_source(module))
    [adapter_class] = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name]
    return (ast.get_docstring(adapter_class) or ast.get_docstring(tree) or "").partition("\n")[0]


def unwrapped(model: Any) -> Any:
    """The transformers model inside the wrappers of torch.compile and PEFT."""
    while True:
        if "_orig_mod" in getattr(model, "_modules", {}):
            model = model._orig_mod
        elif hasattr(model, "get_base_model"):
            model = model.get_base_model()
        else:
            return model


def adapter_for(model: Any) -> Adapter:
    """The adapter of a transformers model: its family's, or the generic one where the model has the usual layout.

    `adapter_for(model).model` is the model itself where `model` is a wrapper around it.

    Raises:
        UserError: neither; the sentence names the families there are, and what the generic adapter missed.
    """
    from vlmprune.models.generic import GenericAdapter
    from vlmprune.models.layout import misfit

    model = unwrapped(model)
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    if model_type in FAMILIES and hasattr(model, "model"):
        module, _, name = FAMILIES[model_type].partition(":")
        adapter = getattr(import_module(module), name)
        if adapter.knows(model.config):
            return adapter(model)
    reason = misfit(model)
    if reason is not None:
        what = f"a {model_type!r} model" if model_type else f"a {type(model).__name__}"
        raise UserError(
            f"vlmprune cannot prune {what}: it supports {', '.join(sorted(FAMILIES))} and other models of "
            f"transformers' usual layout (here: {reason})."
        )
    return GenericAdapter(model)
