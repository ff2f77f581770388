"""What transformers makes of encoded images when it repeats a prompt, for beams or several answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from vlmprune.core.errors import UserError
from vlmprune.models.base import Adapter

ADVICE = "ask for one answer without beams"
REPEATED = "pooler_output"  # the field of an encoder's output that `generate` repeats with a prompt


def pieces_of(output: Any, counts: Sequence[int] | None = None) -> list[Tensor] | None:
    """The features of each image in an encoder's output; None where it holds those of all images in one tensor.

    Args:
        counts: how many features each image has, where an entry may hold those of all images of a sample (Idefics 2).
    """
    pooled = getattr(output, "pooler_output", None)
    if not isinstance(pooled, list | tuple):
        return None
    rows = [piece.flatten(0, -2) for piece in pooled]
    own = [len(piece) for piece in rows]
    if counts is None or own == [*counts] or sum(own) != sum(counts):
        return list(pooled)
    return list(torch.cat(rows).split([*counts]))


def check_encoded(adapter: Adapter, encoded: Mapping[str, Any], slots: Mapping[str, Tensor]) -> None:
    """Raise UserError if nobody read of the encoder what the methods need, or if transformers lost encoded images.

    Args:
        encoded: the encoder's output that a forward is handed, by modality.
        slots: [B, S] where its prompt has placeholders, by modality.
    """
    for modality, output in encoded.items():
        if not hasattr(output, "vlmprune_record"):
            raise UserError("These images were encoded elsewhere: pass pixel_values, or use vlmprune.encode_images.")
        images = output.vlmprune_record.images
        lost = pieces_of(output) == [] and images  # it looked for another id than the prompt has
        if adapter.features_in != REPEATED:
            features = sum(image.count for image in images)
            lost = features and int(slots[modality].sum()) // features > 1
        if lost:
            raise UserError(
                f"transformers loses the {modality}s of {adapter.family} when it repeats a prompt: {ADVICE}."
            )


def check_order(
    family: str, modality: str, output: Any, pieces: Sequence[Tensor] | None, wanted: Sequence[int]
) -> None:
    """Raise UserError if repeated images do not stand in the order of their slots (as in transformers' GLM).

    Args:
        output: the encoder's output that the forward was handed.
        pieces: the features of each image as they were encoded; None where they are in one tensor.
        wanted: for each image of each row of the prompt, row by row, its number among `pieces`.
    """
    if pieces is None or max(wanted, default=0) >= len(pieces):
        return
    given = pieces_of(output, [pieces[number].shape[:-1].numel() for number in wanted])
    if given is None or len(given) != len(wanted):
        return
    if not all(_equal(one, pieces[number]) for one, number in zip(given, wanted, strict=True)):
        raise UserError(
            f"transformers mixes up the {modality}s of {family} when it repeats a prompt that has several: {ADVICE}, "
            f"or give one {modality} per prompt."
        )


def _equal(one: Tensor, other: Tensor) -> bool:
    return one is other or (one.shape == other.shape and torch.equal(one, other.to(one.device)))
