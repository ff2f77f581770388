"""A user's model as the checks of methods take it (`vlmprune check --model`)."""

from __future__ import annotations

import torch

from vlmprune.bench.load import load_model
from vlmprune.core.errors import UserError
from vlmprune.doctor import sample_inputs, sample_picture
from vlmprune.doctor.prompts import padded_batch
from vlmprune.doctor.reference import no_oracle
from vlmprune.models import adapter_for
from vlmprune.testing import Ground


def ground_of(name: str) -> Ground:
    """A model with the sample picture and a question, beside a longer prompt that shows the picture twice.

    Args:
        name: an embedded model, a folder or a hub id.

    Raises:
        UserError: the model cannot be loaded, or the oracle cannot judge it.
    """
    loaded = load_model(name)
    adapter = adapter_for(loaded.model)
    if reason := no_oracle(adapter):
        raise UserError(f"The checks cannot be run on {name!r}: {reason}.")
    inputs = sample_inputs(loaded.processor, sample_picture()).to(loaded.model.device, loaded.model.dtype)
    inputs.pop("labels", None)  # PaliGemma's processor makes some for training
    batch = padded_batch(adapter, inputs)
    ids = batch.inputs["input_ids"]
    shows = torch.isin(ids, torch.tensor(list(adapter.placeholder_ids.values()), device=ids.device))
    slots = int(shows[0].sum())
    numbers = torch.where(shows, (shows.long().cumsum(1) - 1) // slots, -1)
    return Ground(name, loaded.model, batch.inputs, batch.rows, numbers, [[slots], [slots, slots]], "model")
