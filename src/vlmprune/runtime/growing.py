"""New images and videos in a further turn, on models with M-RoPE: their `generate` does not place them behind a cache.

It would need the grids of all images of the conversation, and the pixels of the new ones alone. The cache knows where
the earlier turns ended, so the new turn gets the ids that it has in the whole conversation.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vlmprune.core.errors import UserError
from vlmprune.models.base import Adapter
from vlmprune.runtime.attributes import Attachments
from vlmprune.runtime.cache import going_on_of
from vlmprune.runtime.expected import MASK, cache_in

PLACES = "_prepare_position_ids_for_generation"
TYPES = "mm_token_type_ids"
_BY_HAND = "pass position_ids for the whole conversation, as the model's get_rope_index counts them with all its grids"


def place_new_images(attached: Attachments, adapter: Adapter) -> None:
    """Let `generate` place the images of a further turn, where the model counts positions on several axes."""
    model: Any = adapter.model
    if not hasattr(adapter.inner, "get_rope_index") or not hasattr(model, PLACES):
        return
    original = getattr(model, PLACES)

    @functools.wraps(original)
    def wrapper(inputs_tensor: Tensor, model_kwargs: Mapping[str, Any]) -> Any:
        cache, types = cache_in(model_kwargs), model_kwargs.get(TYPES)
        past = 0 if cache is None else int(cache.get_seq_length())
        if not past or types is None or not bool(types[:, :past].any()) or not bool(types[:, past:].any()):
            return original(inputs_tensor, model_kwargs)
        return _placed(adapter, inputs_tensor, model_kwargs, past)

    attached.put(model, PLACES, wrapper)


def _placed(adapter: Adapter, ids: Tensor, given: Mapping[str, Any], past: int) -> Tensor:
    """[4, B, S] ids of a conversation whose first `past` columns are in the cache: those of later columns are right."""
    ids = given["input_ids"] if given.get("input_ids") is not None and given["input_ids"].shape[1] else ids
    before = going_on_of(cache_in(given))
    if before is None or before.origin.ndim != 2 or before.origin.shape[-1] != len(ids):
        raise UserError(f"Nobody knows where the earlier turns of this cache ended: {_BY_HAND}.")
    start = (before.origin[-3:] + past).to(ids.device)
    if not bool((start == start[0]).all()):
        raise UserError(f"A turn that ended with an image tells not where text goes on behind it: {_BY_HAND}.")
    mask = given.get(MASK)
    real = torch.ones_like(ids) if mask is None else mask.to(ids.device).long()
    inner: Any = adapter.inner
    known = inspect.signature(inner.get_rope_index).parameters.keys() - {"input_ids", "kwargs", TYPES, MASK}
    about = {name: given[name] for name in known if given.get(name) is not None}
    try:
        new = inner.get_rope_index(ids[:, past:], given[TYPES][:, past:], attention_mask=real[:, past:], **about)[0]
    except (StopIteration, RuntimeError):
        raise UserError(
            "The grids do not fit the new part of the prompt: behind a cache, give pixels and grids of the new images "
            "and videos alone."
        ) from None
    new = (new.to(ids.device) + start[..., None]) * real[:, past:]
    largest = torch.maximum(before.largest.to(ids.device), new.amax((0, 2)))
    inner.rope_deltas = (largest + 1 - real.sum(1))[:, None]  # with which the model counts on, as it sets them itself
    text = (real.cumsum(1) - 1) * real
    return torch.cat([text[None], torch.cat([new.new_zeros(3, len(ids), past), new], dim=2)])
