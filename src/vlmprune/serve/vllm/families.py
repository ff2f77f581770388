"""Which models the plugin prunes: those whose answers are tested to be transformers' own under `vlmprune.prune`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vlmprune.core.errors import Option, UserError
from vlmprune.runtime.apart import Apart

if TYPE_CHECKING:
    from torch import nn

    from vlmprune.serve.vllm.asked import Asked

TESTED = ("llava", "llava_next", "internvl", "qwen2_vl", "qwen2_5_vl", "qwen3_vl")  # tests/vllm_plugin
VIDEOS = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")  # of these, with videos


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
            f"vlmprune prunes {' and '.join(TESTED)} in vLLM, and this model is {family}: serve it with ",
            Option("engine", "transformers"), ".",
        )  # fmt: skip
    apart = Apart(model, recipe(asked.recipe))
    policy = apart.policy(asked.positions)
    if not axes and policy == "original":
        raise UserError(
            f"{asked.recipe} keeps the positions of the kept tokens, and vLLM counts those of this model one by one: ",
            "give ", Option("positions", "compact"), ", or serve with ", Option("engine", "transformers"), ".",
        )  # fmt: skip
    if axes and policy == "compact":
        raise UserError(
            f"{asked.recipe} numbers the kept tokens anew, which the plugin cannot do on a model with M-RoPE: give ",
            Option("positions", "original"), ", or serve with ", Option("engine", "transformers"), ".",
        )  # fmt: skip
    return apart


def on_meta(config: Any) -> nn.Module:
    """A model without weights, for counting."""
    import torch
    from transformers import AutoModel

    with torch.device("meta"):
        return AutoModel.from_config(config)
