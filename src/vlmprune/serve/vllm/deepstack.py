"""DeepStack (Qwen3-VL): features of the encoder that the first decoder layers add to their outputs at visual tokens.

vLLM's backend for transformers' models drops them. Here they travel as further channels of an image's embeddings, as
in vLLM's own Qwen3-VL. When vLLM puts the embeddings of a step into its sequence, these channels are put into rows of
their own, zeros where there is text, and each layer adds its rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vlmprune.core.errors import UserError


class Levels:
    """What the first decoder layers add to their outputs, for the tokens of one step.

    Args:
        layers: one for each level.
        most: tokens of a step.
        width: of hidden states.
        dtype, device: of hidden states.
    """

    def __init__(self, layers: Sequence[nn.Module], most: int, width: int, dtype: torch.dtype, device: Any) -> None:
        self.rows = torch.zeros(len(layers), most, width, dtype=dtype, device=device)  # one place, as graphs hold it
        self.used = 0
        for layer, rows in zip(layers, self.rows, strict=True):
            layer.register_forward_hook(_adds(rows))

    def put(self, embeddings: Sequence[Tensor], visual: Tensor | None, tokens: int) -> list[Tensor]:
        """Keep the levels' channels for the step that follows; returns the embeddings [m, D] without them.

        Args:
            embeddings: [m, D + levels * D] of each image of the step.
            visual: [tokens] which tokens of the step are theirs; None where there are none.
        """
        levels, _, width = self.rows.shape
        wide = {own.shape[1] for own in embeddings} - {width * (1 + levels)}
        if wide:
            raise RuntimeError(f"Embeddings of {wide} channels do not hold {levels} levels of {width}")
        self.rows[:, : self.used] = 0
        self.used = tokens if embeddings else 0
        if not embeddings:
            return []
        if visual is None or int(visual.sum()) != sum(map(len, embeddings)):
            raise RuntimeError("The embeddings of a step do not fit its placeholders")
        deep = torch.cat([own[:, width:] for own in embeddings]).unflatten(1, (levels, width)).transpose(0, 1)
        self.rows[:, visual.nonzero().squeeze(1).to(deep.device)] = deep.to(self.rows)
        return [own[:, :width] for own in embeddings]

    def check(self, embeddings: Tensor | None) -> None:
        """Raise where a step does not run on the embeddings [tokens, D] that were put together for it."""
        if self.used and (embeddings is None or len(embeddings) < self.used):
            raise RuntimeError("vLLM runs a step on other tokens than those whose images it has embedded")


def levels_of(model: nn.Module, vllm_config: Any) -> Levels | None:
    """Those of a model of transformers that vLLM has just made; None where it has none.

    Raises:
        UserError: the engine is set up in a way in which a step's tokens would not stay together.
    """
    indexes = getattr(model.config.vision_config, "deepstack_visual_indexes", None)  # type: ignore[union-attr]
    if not indexes:
        return None
    if vllm_config.parallel_config.use_ubatching:
        raise UserError("vlmprune's plugin is not tested with --enable-dbo: leave it out.")
    text: Any = model.language_model
    layers, width = text.layers[: len(indexes)], text.config.hidden_size
    most = vllm_config.scheduler_config.max_num_batched_tokens
    return Levels(layers, most, width, vllm_config.model_config.dtype, vllm_config.device_config.device)


def _adds(rows: Tensor) -> Any:
    def add(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return output + rows[: output.shape[1]]

    return add
