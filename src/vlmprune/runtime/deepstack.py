"""Deepstack (Qwen3-VL): encoder features that the text model adds to its first layers' outputs at the visual tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from vlmprune.runtime.attributes import Attachments
from vlmprune.runtime.flow import Layout, gather_rows

FUNCTION = "_deepstack_process"


def shorten(kwargs: dict[str, Any], index: Tensor, layout: Layout) -> dict[str, Any]:
    """The text model's deepstack arguments for the tokens at columns `index` [B, P] of the prompt."""
    levels = kwargs.get("deepstack_visual_embeds")
    if levels is None:
        return kwargs
    mask: Tensor = kwargs["visual_pos_masks"]
    kept = mask.gather(1, index.to(mask.device)) & layout.valid.to(mask.device)
    shorter = [gather_rows(_spread(mask, level), index)[kept.to(level.device)] for level in levels]
    return {**kwargs, "visual_pos_masks": kept, "deepstack_visual_embeds": shorter}


def wrap(attached: Attachments, text_model: nn.Module, index_now: Callable[[], Tensor | None]) -> None:
    """Let the text model add to hidden states of which some were removed inside it.

    Args:
        index_now: [B, P] where the tokens of the layer that has just run sat among those that entered layer 0, or None.
    """
    original: Any = getattr(text_model, FUNCTION, None)
    if original is None:
        return

    def process(hidden: Tensor, mask: Tensor, level: Tensor) -> Tensor:
        index = index_now()
        if index is None:
            return original(hidden, mask, level)
        return hidden + gather_rows(_spread(mask, level), index).to(hidden)

    attached.put(text_model, FUNCTION, process)


def _spread(mask: Tensor, level: Tensor) -> Tensor:
    """Features of the visual tokens as [B, S, D], zeros at the others."""
    whole = level.new_zeros(*mask.shape, level.shape[-1])
    whole[mask.to(level.device)] = level
    return whole
