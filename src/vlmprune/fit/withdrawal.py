"""The search for the layer from which on a model no longer needs the image (for `vtw`)."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

import vlmprune
from vlmprune.core.errors import UserError
from vlmprune.methods.decoder.vtw import VTW, divergence, first_within
from vlmprune.models import adapter_for


@torch.no_grad()
def find_layer(model: nn.Module, batches: Iterable[Mapping[str, Any]], eta: float = 0.003, first: int = 5) -> int:
    """The first decoder layer before which the image's tokens can be dropped with little change to the next token.

    For each layer from `first` on, it compares the distribution of the token after the prompt with and without the
    image's tokens from that layer on (KL(withdrawn || full), mean over samples). The authors take about 20 samples of
    the task, and eta = 0.003 for LLaVA-1.5-7B, 0.0005 for 13B, 0.0001 for LLaVA-1.6-7B. The image is encoded once; a
    batch costs one prefill for each layer tried, and one more.

    Args:
        batches: prompts with images as the processor returned them, padded on the left.
        eta: the largest divergence allowed, in nats.
        first: the first layer to try.

    Returns:
        K for `prune(model, f"vtw@{K}")`; the model's depth, with a warning, if every layer changes more than `eta`.

    Raises:
        UserError: there are no batches, prompts are padded on the right, or `first` is not a layer from 1 on.
    """
    depth = len(adapter_for(model).decoder_layers)
    if not 1 <= first < depth:
        raise UserError(f"first={first} must be a layer from 1 to {depth - 1}, as this model has {depth} layers.")
    full, withdrawn = [], []
    for batch in batches:
        mask = batch.get("attention_mask")
        if mask is not None and not bool(mask[:, -1].all()):
            raise UserError("find_layer reads the last token of each prompt: pad on the left.")
        encoded = vlmprune.encode_images(model, batch, [])
        full.append(_next_token(model, encoded.inputs()))
        runs = []
        for layer in range(first, depth):
            with vlmprune.prune(model, VTW(layer=layer)):
                runs.append(_next_token(model, encoded.inputs()))
        withdrawn.append(torch.stack(runs, dim=1))
    if not full:
        raise UserError("find_layer needs at least one batch of prompts.")
    found = first_within(divergence(torch.cat(full), torch.cat(withdrawn)), eta, first)
    if found is None:
        warnings.warn(
            f"Dropping the image changes the next token by more than eta={eta} at every layer from {first} on: raise "
            "eta, or keep the image.",
            stacklevel=2,
        )
        return depth
    return found


def _next_token(model: nn.Module, inputs: Mapping[str, Any]) -> torch.Tensor:
    """[B, V] logits of the token after the prompt."""
    return model(**inputs, use_cache=False, logits_to_keep=1).logits[:, -1].float()
