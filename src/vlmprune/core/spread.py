"""Laying the output of a pruned model back over the columns of the whole prompt."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vlmprune.core.errors import UserError

SLIDING = "sliding_attention"


@dataclass(frozen=True)
class PromptColumns:
    """For each decoder layer, the prompt columns of the tokens that it ran on in the last prefill.

    Attributes:
        length: columns S of the prompt as it was given; after a cache, of its new part.
        bands: [(layer, columns, own), ...]: from this decoder layer on, the columns [samples, P] of the tokens, -1 for
            padding on the left; and whether each column is the token's own [samples, P]. A merged token without a slot
            (VisionZip's CLS token) has none of its own and stands before the token whose column it is given.
        samples: the sample of each row of the batch; several rows have the same one if beams or answers share a prompt.
        depth: number of decoder layers.
        kinds: the kind of attention of each decoder layer that has attention.
        trimmed: see `RunReport.trimmed`.
        cached: whether the prompt came after an older cache.
    """

    length: int
    bands: Sequence[tuple[int, Tensor, Tensor]]
    samples: Sequence[int]
    depth: int
    kinds: Mapping[int, str]
    trimmed: Mapping[int, int] = field(default_factory=dict)
    cached: bool = False

    def of(self, layer: int) -> Tensor:
        """[samples, P] columns of the tokens that a decoder layer (0-based, negative from the end) ran on."""
        return self._band(layer)[1]

    def _band(self, layer: int) -> tuple[int, Tensor, Tensor]:
        if not -self.depth <= layer < self.depth:
            raise UserError(f"There is no decoder layer {layer}: this model has layers 0 to {self.depth - 1}.")
        return next(band for band in reversed(self.bands) if band[0] <= layer % self.depth)

    def spread(self, values: Tensor, layer: int, fill: float) -> Tensor:
        """A single tensor, see `RunReport.spread`."""
        return self._states(values, layer, fill) if values.ndim == 3 else self._maps(values, layer, fill)

    def spread_all(self, values: Sequence[Tensor | None], fill: float) -> tuple[Tensor | None, ...]:
        """`hidden_states` or `attentions`, see `RunReport.spread`."""
        return tuple(
            None if value is None else self.spread(value, number, fill)
            for value, number in zip(values, self._layers(values), strict=True)
        )

    def _layers(self, values: Sequence[Tensor | None]) -> list[int]:
        """The decoder layer that ran on the tokens of each entry of `hidden_states` or `attentions`."""
        tensors = [value for value in values if value is not None]
        if not tensors:
            raise UserError(
                "There is nothing to spread: load the model with attn_implementation='eager', as only eager attention "
                "returns attention maps."
            )
        if not all(isinstance(value, Tensor) for value in tensors):
            raise UserError("generate returns a tuple for each step: give one of them, [0] for that of the prompt.")
        if tensors[0].ndim == 4 and len(values) == len(self.kinds):
            return list(self.kinds)
        if tensors[0].ndim == 3 and len(values) in (self.depth, self.depth + 1):
            # first what enters layer 0 (not where transformers was asked for some layers), then each layer's output
            return [*range(self.depth)] if len(values) == self.depth else [0, *range(self.depth)]
        raise UserError(
            f"{len(values)} tensors of {tensors[0].ndim} axes are neither the hidden_states nor the attentions of a "
            f"language model of {self.depth} layers."
        )

    def _states(self, values: Tensor, layer: int, fill: float) -> Tensor:
        columns = self._rows(layer, values)
        if values.shape[1] != columns.shape[1]:
            raise UserError(
                f"{values.shape[1]} tokens were given, but decoder layer {layer % self.depth} ran on "
                f"{columns.shape[1]}: give all that the last prefill returned (no logits_to_keep, no later step)."
            )
        return laid(values, columns, self.length, 1, fill)

    def _maps(self, values: Tensor, layer: int, fill: float) -> Tensor:
        if values.ndim != 4:
            raise UserError(
                f"A tensor of {values.ndim} axes cannot be spread: give hidden states or logits [B, P, D], or "
                "attention maps [B, H, Q, K]."
            )
        if self.cached:
            raise UserError(
                "Attention maps of a prompt after an older cache cannot be spread, for their keys are of both: spread "
                "the hidden states, or run the prompt without the cache."
            )
        number = layer % self.depth
        if (
            values.shape[2] == self.of(layer).shape[1]
        ):  # the prefill; a static cache has room behind it, which nobody sees
            rows = self._rows(number, values)
            keys = laid(self._keys(values, rows, number), rows, self.length, 3, fill)
            return laid(keys, rows, self.length, 2, fill)
        if self.kinds.get(number) == SLIDING:
            raise UserError(
                f"Decoder layer {number} has a sliding window, so the keys of a decoding step cannot be told apart: "
                "spread the maps of the prefill instead."
            )
        rows = self._rows(self.trimmed.get(number, number), values)
        prompt = laid(self._keys(values, rows, number), rows, self.length, 3, fill)
        return torch.cat([prompt, values[..., rows.shape[1] :]], dim=3)

    @staticmethod
    def _keys(values: Tensor, columns: Tensor, layer: int) -> Tensor:
        if values.shape[3] < columns.shape[1]:
            raise UserError(
                f"{values.shape[3]} keys were given, but decoder layer {layer} ran on {columns.shape[1]} tokens: give "
                "a map of the last run."
            )
        return values[..., : columns.shape[1]]

    def _rows(self, layer: int, values: Tensor) -> Tensor:
        """[B, P] for each row of `values` the columns at which its tokens are laid, -1 for none."""
        _, columns, own = self._band(layer)
        columns = columns.where(own, -1)
        if values.shape[0] == len(self.samples):
            columns = columns[list(self.samples)]
        elif values.shape[0] != len(columns):
            raise UserError(
                f"{values.shape[0]} rows were given, but the last prefill had {len(self.samples)}: give what it "
                "returned."
            )
        return columns.to(values.device)


def laid(values: Tensor, columns: Tensor, length: int, dim: int, fill: float = math.nan) -> Tensor:
    """`values` with the tokens of axis `dim` at their columns.

    Args:
        values: [B, ...], P long at `dim`.
        columns: [B, P] a column for each token, -1 for none. If two tokens have the same column, the first is laid.
        length: the length that the axis gets.
        fill: the value where there is no token.
    """
    count = columns.shape[1]
    order = torch.arange(count, device=columns.device).expand_as(columns)
    first = torch.full((len(columns), length + 1), count, device=columns.device)
    first = first.scatter_reduce(1, columns.where(columns >= 0, length), order, "amin")[:, :length]
    shape = [len(columns), *[1] * (values.ndim - 1)]
    shape[dim] = length
    whole = [*values.shape[:dim], length, *values.shape[dim + 1 :]]
    index = first.clamp(max=count - 1).view(shape).expand(whole)
    return values.gather(dim, index).masked_fill((first == count).view(shape), fill)
