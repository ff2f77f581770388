"""A user's model as the checks of methods and adapters take it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

import vlmprune
from vlmprune.bench.load import Loaded, load_model
from vlmprune.doctor import sample_inputs, sample_picture
from vlmprune.doctor.prompts import Prompts, one_prompt, padded_batch
from vlmprune.doctor.reference import image_numbers, no_oracle
from vlmprune.models import adapter_for
from vlmprune.models.base import Adapter
from vlmprune.testing import Ground

ODD = {"a wide picture": (448, 48), "a tall picture": (48, 448)}  # width and height in pixels


def ground_of(name: str, option: str = "model") -> Ground:
    """A model with the sample picture and a question, beside a longer prompt that shows the picture twice.

    Args:
        name: an embedded model, a folder or a hub id.
        option: by which `vlmprune check` takes it, "" where the command names it already.

    Raises:
        UserError: the model cannot be loaded or pruned, or its processor refuses the sample picture.
    """
    loaded = load_model(name)
    adapter = adapter_for(loaded.model)
    usual = _inputs(loaded, None)
    pictures = {words: _inputs(loaded, size) for words, size in ODD.items()}
    odd = [
        _ground(f"{name}, {words}", adapter, one_prompt(adapter, inputs), option)
        for words, inputs in pictures.items()
        if _shapes(inputs) != _shapes(usual)
    ]
    on = _ground(name, adapter, padded_batch(adapter, usual), option)
    reason = no_oracle(adapter) or ""
    return replace(on, odd=tuple(replace(one, unjudged=reason) for one in odd), unjudged=reason)


def _inputs(loaded: Loaded, size: tuple[int, int] | None) -> Mapping[str, Any]:
    """What the processor makes of the sample picture, stretched to a width and height where these are given."""
    picture = sample_picture() if size is None else sample_picture().resize(size)
    inputs = sample_inputs(loaded.processor, picture).to(loaded.model.device, loaded.model.dtype)
    inputs.pop("labels", None)  # PaliGemma's processor makes some for training
    return inputs  # type: ignore[no-any-return]


def _shapes(inputs: Mapping[str, Any]) -> list[Any]:
    return [value.shape if isinstance(value, Tensor) else None for value in inputs.values()]


@torch.no_grad()
def _ground(name: str, adapter: Adapter, prompts: Prompts, option: str) -> Ground:
    model: Any = adapter.model
    with vlmprune.prune(model, "random:1.0") as session:
        model(**prompts.inputs)
    numbers = image_numbers(adapter, prompts.inputs, session.last)
    slots = [[len(cells) for cells in images] for images in session.last.cells]
    return Ground(name, model, prompts.inputs, prompts.rows, numbers, slots, option)
