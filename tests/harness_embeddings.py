"""The language model run on embeddings put together by hand: the reference for methods that make new tokens."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vlmprune.models import adapter_for
from vlmprune.testing.weights import IMAGE


def greedy_on_embeddings(model: Any, embeds: Tensor, positions: Tensor, tokens: Tensor) -> Tensor:
    """Logits for each of `tokens` [T], every step an uncached forward of the text model on the whole sequence."""
    text, logits = adapter_for(model).text_model, []
    last = positions[..., -1:]
    for step in range(len(tokens)):
        new = model.get_input_embeddings()(tokens[None, :step])
        more = last + torch.arange(1, step + 1)
        out = text(
            inputs_embeds=torch.cat([embeds, new], dim=1),
            position_ids=torch.cat([positions, more], dim=-1),
            attention_mask=torch.ones(1, embeds.shape[1] + step, dtype=torch.long),
            use_cache=False,
        )
        logits.append(model.get_output_embeddings()(out.last_hidden_state[:, -1]))
    return torch.cat(logits)


def assemble(model: Any, ids: Tensor, images: list[tuple[Tensor, Tensor]], positions: Tensor) -> tuple[Tensor, Tensor]:
    """The sequence with each image's placeholders replaced by (features, position ids [axes, m]) by hand."""
    table, embeds, places, number, column = model.get_input_embeddings(), [], [], 0, 0
    while column < ids.shape[1]:
        if ids[0, column] == IMAGE:
            features, where = images[number]
            embeds.append(features)
            places.append(where)
            number += 1
            while column < ids.shape[1] and ids[0, column] == IMAGE:
                column += 1
        else:
            embeds.append(table(ids[:, column]))
            places.append(positions[:, column : column + 1])
            column += 1
    return torch.cat(embeds)[None], torch.cat(places, dim=1)


def merged(model: Any, inputs: dict[str, Any]) -> torch.Tensor:
    """Embeddings with the images in them already, as a user's own code would put them together."""
    seen: list[torch.Tensor] = []
    text = adapter_for(model).text_model
    handle = text.register_forward_pre_hook(lambda m, a, k: seen.append(k["inputs_embeds"]), with_kwargs=True)
    model(**inputs)
    handle.remove()
    return seen[0]
