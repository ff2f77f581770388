"""The masking oracle: what a pruned run must equal, computed without removing anything.

One uncached forward of the whole sequence in which every dropped visual column is masked in the decoder layers that no
longer see it. It shares no code with the runtime's gathering, caching and position code.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vlmprune.core.errors import UserError
from vlmprune.core.report import RunReport
from vlmprune.models import adapter_for


@torch.no_grad()
def masking_oracle(
    model: nn.Module,
    inputs: Mapping[str, Any],
    tokens: Tensor,
    report: RunReport,
    policies: Mapping[int, str] | None = None,
) -> Tensor:
    """Logits that a pruned generation of `tokens` must have given.

    Args:
        inputs: what the processor returned: 2-D left-padded `attention_mask`, pixels, no cache.
        tokens: [B, T] generated ids.
        report: `session.last` of the pruned run (only its `stages` are read).
        policies: layer -> "compact" where a stage re-numbers positions; "original" elsewhere.

    Returns:
        [B, T, V]: the logits from which each generated token was chosen. Float32 models only.
    """
    adapter, policies = adapter_for(model), policies or {}
    ids = torch.cat([inputs["input_ids"], tokens[:, :-1].to(inputs["input_ids"])], dim=1)
    length = ids.shape[1]
    extra = length - inputs["input_ids"].shape[1]
    real = nn.functional.pad(inputs["attention_mask"], (0, extra), value=1).bool()
    full = {**inputs, "input_ids": ids, "attention_mask": real.long()}
    if "mm_token_type_ids" in inputs:
        full["mm_token_type_ids"] = nn.functional.pad(inputs["mm_token_type_ids"], (0, extra))
    image = _image_numbers(adapter, full)
    visible = {0: real}
    for layer, kept in report.stages:
        visible[layer] = real & _kept_columns(image, kept)
    positions = {0: _positions(adapter, full)}
    for layer in sorted(visible):
        before = positions[max(at for at in positions if at <= layer)]
        compact = policies.get(layer) == "compact"
        positions[layer] = _renumber(before, visible[layer], image) if compact else before

    causal = torch.ones(length, length, dtype=torch.bool, device=ids.device).tril()
    rotary: dict[int, Any] = {}

    def hook_for(number: int) -> Any:
        layer = max(at for at in visible if at <= number)

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            hidden = args[0] if args else kwargs["hidden_states"]
            # A query that may see nothing (padding) sees itself, lest its softmax be NaN.
            mask = (causal & visible[layer][:, None, :]) | torch.eye(length, dtype=torch.bool, device=ids.device)
            mask = mask[:, None]
            if adapter.text_model.config._attn_implementation != "sdpa":
                mask = torch.zeros(mask.shape).masked_fill(~mask, torch.finfo(hidden.dtype).min).to(hidden)
            if layer not in rotary:
                rotary[layer] = adapter.rotary(hidden, positions[layer])
            return args, {
                **kwargs,
                "attention_mask": mask,
                "position_ids": None,
                "position_embeddings": rotary[layer],
            }

        return hook

    handles = [
        layer.register_forward_pre_hook(hook_for(number), with_kwargs=True)
        for number, layer in enumerate(adapter.decoder_layers)
    ]
    try:
        logits = model(**full, use_cache=False).logits
    finally:
        for handle in handles:
            handle.remove()
    return logits[:, -tokens.shape[1] :]


def _image_numbers(adapter: Any, inputs: Mapping[str, Any]) -> Tensor:
    """[B, S] the number of the image in its sample that a column shows, -1 for text; images must not touch."""
    ids = inputs["input_ids"]
    slot = torch.isin(ids, torch.tensor(list(adapter.placeholder_ids.values()), device=ids.device))
    begins = slot & ~nn.functional.pad(slot, (1, 0))[:, :-1]
    return torch.where(slot, begins.long().cumsum(1) - 1, -1)


def _kept_columns(image: Tensor, kept: list[list[Tensor]]) -> Tensor:
    columns = image < 0
    for row, slots_of in enumerate(kept):
        for number, slots in enumerate(slots_of):
            columns[row, (image[row] == number).nonzero().squeeze(1)[slots.to(image.device)]] = True
    return columns


def _positions(adapter: Any, inputs: Mapping[str, Any]) -> Tensor:
    """Position ids of the unpruned prompt, by the family's own rule: [B, S] or [3, B, S]."""
    mask = inputs["attention_mask"]
    if not hasattr(adapter.inner, "get_rope_index"):
        return (mask.cumsum(1) - 1).clamp(min=0)
    names = ("image_grid_thw", "video_grid_thw", "second_per_grid_ts", "mm_token_type_ids")
    known = {name: inputs[name] for name in names if inputs.get(name) is not None}
    if "mm_token_type_ids" not in known:
        raise UserError("The oracle needs mm_token_type_ids, as the processor returns them.")
    return adapter.inner.get_rope_index(inputs["input_ids"], attention_mask=mask, **known)[0]


def _renumber(positions: Tensor, visible: Tensor, image: Tensor) -> Tensor:
    """Compact ids, token by token: text counts on, an image's axes are ranked, text goes on after the largest id."""
    table = positions.clone() if positions.ndim == 3 else positions[None].clone()
    for row in range(visible.shape[0]):
        columns = visible[row].nonzero().squeeze(1).tolist()
        cursor = int(table[:, row, columns[0]].min())
        while columns:
            number = int(image[row, columns[0]])
            run = columns[:1] if number < 0 else [c for c in columns if int(image[row, c]) == number]
            for axis in range(table.shape[0]):
                old = [int(table[axis, row, column]) for column in run]
                ranks = sorted(set(old))
                for column, value in zip(run, old, strict=True):
                    table[axis, row, column] = cursor + ranks.index(value)
            cursor = max(int(table[axis, row, column]) for axis in range(table.shape[0]) for column in run) + 1
            columns = columns[len(run) :]
    return table if positions.ndim == 3 else table[0]
