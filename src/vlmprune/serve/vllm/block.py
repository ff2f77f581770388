"""The columns of one image or video in a prompt, from its first placeholder to its last.

Qwen3-VL writes a time before each frame of a video, so text stands between the placeholders. How many tokens stay of
which frame is known once the video is encoded, but vLLM asks before at which columns the encoder's embeddings stand. It
is known before how many tokens stay in all, and the text stays. So all columns of the block are the encoder's: it hands
in the embeddings of the text, too, each where it stands once the tokens are chosen. The ids at these columns are those
of as many placeholders as tokens stay, and then those of the text: their embeddings are not read, but vLLM's caches and
its penalties on words of the prompt go by them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vlmprune.serve.vllm.told import FIELDS, Told, as_query


def text_in(ids: Sequence[int], token: int) -> Tensor:
    """[2, t] the text among an item's ids, behind its first placeholder and before its last.

    Returns:
        Its ids, and how many placeholders stand before each.
    """
    written = torch.tensor(ids)
    visual = written == token
    first, last = visual.nonzero()[[0, -1], 0].tolist()
    written, visual = written[first : last + 1], visual[first : last + 1]
    return torch.stack([written, visual.cumsum(0)])[:, ~visual]


class Block:
    """As it is before pruning.

    Args:
        text: as `text_in` returns it.
        whole: how many placeholders there are.

    Attributes:
        ids: [t] of the text.
        text: [t] its columns, counted from the first placeholder.
        visual: [whole + t] whether a column is a placeholder's.
    """

    def __init__(self, text: Tensor, whole: int) -> None:
        self.ids, before = text
        self.text = before + torch.arange(len(before))
        self.visual = torch.ones(whole + len(before), dtype=torch.bool)
        self.visual[self.text] = False

    @property
    def columns(self) -> Tensor:
        """[whole] those of the placeholders."""
        return self.visual.nonzero().squeeze(1)

    def written(self, token: int) -> Tensor:
        """[whole + t] its ids, where this is the placeholder's."""
        ids = torch.full(self.visual.shape, token)
        ids[self.text] = self.ids
        return ids

    def in_order(self, text: Tensor, tokens: Tensor, places: Tensor) -> Tensor:
        """Something of the text [t, ...] and of the kept tokens [m, ...], as they follow one another, [t + m, ...].

        Args:
            places: [m] the column at which each token stands (see `Kept.places`).
        """
        order = torch.cat([self.text.to(places.device), places]).sort(stable=True).indices
        return torch.cat([text.to(tokens), tokens])[order]


class Item(NamedTuple):
    """One image or video, of which the counting half has told."""

    told: Told
    block: Block
    query: str | None

    @classmethod
    def of(cls, row: Tensor, text: Tensor, query: Tensor) -> Item:
        """As vLLM has passed it on."""
        told = Told(*row.tolist())
        return cls(told, Block(text, told.whole), as_query(query))

    @classmethod
    def among(cls, fields: Mapping[str, Any], modality: str) -> Item:
        """Among all fields that vLLM has of it."""
        return cls.of(*(fields[name(modality)].data for name in FIELDS))
