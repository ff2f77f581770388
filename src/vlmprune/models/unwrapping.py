"""Finding the model to prune in what the user passes: inside wrappers, and below heads."""

from __future__ import annotations

from typing import Any

from torch import nn

from vlmprune.core.errors import UserError
from vlmprune.models.layout import text_model_of

DEPTH = 8  # wrappers around one another; and how deep a model is looked for inside a module


def unwrapped(model: Any) -> Any:
    """The model inside torch.compile, PEFT, pipelines, and whatever keeps what it runs as `.module` (DDP, ...).

    Raises:
        UserError: DataParallel over several devices.
    """
    for _ in range(DEPTH):
        if isinstance(model, nn.DataParallel) and len(model.device_ids) > 1:
            raise UserError(
                "DataParallel copies the model to each device for every call, and the copies are not pruned: prune "
                "x.module of this wrapper on one device, or use DistributedDataParallel."
            )
        inside = _inside(model)
        if inside is None:
            break
        model = inside
    return model


def _inside(model: Any) -> Any:
    if isinstance(model, nn.Module):
        for name in ("_orig_mod", "module", "thinker"):  # the last of these is what writes text in an Omni model
            if isinstance(model._modules.get(name), nn.Module):
                return model._modules[name]
        peft: Any = model
        return peft.get_base_model() if hasattr(peft, "get_base_model") else None
    held = getattr(model, "model", None)  # a pipeline
    return held if isinstance(held, nn.Module) else None


def multimodal_of(model: Any) -> Any:
    """The module that has the vision encoder and the text model, or None.

    It is `model.model`; `model` itself where it has no head; or what transformers calls the base of a model with a head
    of another kind (ColPali's `vlm`).
    """
    for _ in range(DEPTH):
        for module in (getattr(model, "model", None), model):
            parts = isinstance(module, nn.Module) and hasattr(module, "config")
            if parts and hasattr(module, "get_image_features") and text_model_of(module) is not None:
                return module
        base = getattr(model, getattr(model, "base_model_prefix", None) or "", None)
        if not isinstance(base, nn.Module) or base is model:
            return None
        model = base
    return None


def nested(model: Any) -> list[str]:
    """The places inside a user's own module that hold models with a vision encoder, the outermost of each."""
    found: list[str] = []
    for name, module in model.named_modules() if isinstance(model, nn.Module) else ():
        shallow = name and name.count(".") < DEPTH and not any(name.startswith(f"{outer}.") for outer in found)
        if shallow and hasattr(module, "config") and multimodal_of(module) is not None:
            found.append(name)
    return found
