"""Which models the plugin prunes: those whose answers are tested to be transformers' own under `vlmprune.prune`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vlmprune.core.errors import UserError
from vlmprune.runtime.apart import Apart

if TYPE_CHECKING:
    from torch import nn

    from vlmprune.serve.vllm.asked import Asked

TESTED = ("llava", "qwen2_5_vl")  # tests/vllm_plugin


def apart_of(model: nn.Module, asked: Asked, axes: bool) -> Apart:
    """The recipe that an engine is asked for, on its model.

    Args:
        model: of transformers.
        axes: whether the model has M-RoPE.

    Raises:
        UserError: the plugin does not prune this model, or not so.
    """
    from vlmprune.core.recipe import recipe

    family = model.config.model_type  # type: ignore[union-attr]
    if family not in TESTED:
        raise UserError(
            f"vlmprune prunes {', '.join(TESTED)} in vLLM, and this model is {family}: serve it with "
            "--engine transformers."
        )
    apart = Apart(model, recipe(asked.recipe))
    if not axes and asked.positions == "original":
        raise UserError("vLLM counts the positions of this model one by one: leave out positions='original'.")
    if axes and apart.policy(asked.positions) == "compact":
        raise UserError(
            f"{asked.recipe} numbers the kept tokens anew, which the plugin cannot do on a model with M-RoPE: give "
            "positions='original', or serve with --engine transformers."
        )
    return apart


def on_meta(config: Any) -> nn.Module:
    """A model without weights, for counting."""
    import torch
    from transformers import AutoModel

    with torch.device("meta"):
        return AutoModel.from_config(config)
