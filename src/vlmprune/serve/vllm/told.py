"""What the counting half of the plugin tells the selecting half of each image: tensors, as vLLM passes them on."""

from __future__ import annotations

import struct
from typing import NamedTuple

import torch
from torch import Tensor

from vlmprune.core.budget import Keep

MOST = (1 << 62) - 1


class Told(NamedTuple):
    """Of one image or video.

    Attributes:
        whole, kept: its tokens.
        seed: for methods that draw.
        keep: the budget of its request, `as_number`.
    """

    whole: int
    kept: int
    seed: int
    keep: int


def field(modality: str) -> str:
    """The name under which vLLM passes it on."""
    return f"vlmprune_{modality}"


def text_field(modality: str) -> str:
    """The name under which vLLM passes on the text between an item's placeholders (`text_in`)."""
    return f"{field(modality)}_text"


def query_field(modality: str) -> str:
    """The name under which vLLM passes on what an item is compared with (`as_bytes`)."""
    return f"{field(modality)}_query"


FIELDS = (field, text_field, query_field)


def as_bytes(query: str | None) -> Tensor:
    """[b] uint8, a question; nothing where there is none."""
    return torch.tensor([*(query or "").encode()], dtype=torch.uint8)


def as_query(written: Tensor) -> str | None:
    """The question that `as_bytes` wrote."""
    return bytes(written.tolist()).decode() or None


def as_number(keep: Keep | None) -> int:
    """A budget as one whole number: a count as itself, a share as its negative bits, 0 for that of the engine."""
    if keep is None:
        return 0
    if isinstance(keep, float):
        return -struct.unpack("<q", struct.pack("<d", keep))[0]
    return min(keep, MOST)


def as_keep(number: int) -> Keep | None:
    """The budget that `as_number` gave; of counts beyond every image, one that is beyond every image."""
    if number < 0:
        return struct.unpack("<d", struct.pack("<q", -number))[0]
    return number or None
