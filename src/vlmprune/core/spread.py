"""Laying what a pruned model returns back over the prompt as it was given."""

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
    """Which columns of the prompt the tokens stand at that each decoder layer ran on, in the last prefill.

    Attributes:
        length: columns S of the prompt as it was given; behind a cache, of its new part.
        bands: [(layer, columns, own), ...]: from this decoder layer on, the columns [samples, P] of the tokens, -1 for
            a filler on the left; and whether each is the token's own [samples, P], not so of a merged token without a
            slot (VisionZip's CLS token), which stands in front of another one's.
        samples: sample of each row of the batch; several rows where beams or answers share a prompt.
        depth: number of decoder layers.
        kinds: the kind of attention of each decoder layer that has some.
        trimmed: see `RunReport.trimmed`.
        cached: whether the prompt went on behind a cache.
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
            raise UserError("There is nothing to spread: attention maps are returned under eager attention alone.")
        if not all(isinstance(value, Tensor) for value in tensors):
            raise UserError("generate returns a tuple for each step: give one of them, [0] for the prompt's.")
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
                f"{values.shape[1]} tokens were given where decoder layer {layer % self.depth} ran on "
                f"{columns.shape[1]}: give all that the last prefill returned (no logits_to_keep, no later step)."
            )
        return laid(values, columns, self.length, 1, fill)

    def _maps(self, values: Tensor, layer: int, fill: float) -> Tensor:
        if values.ndim != 4:
            raise UserError(f"A tensor of {values.ndim} axes is neither hidden states [B, P, D] nor maps [B, H, Q, K].")
        if self.cached:
            raise UserError("Attention of a prompt that went on behind a cache cannot be spread: its keys are of both.")
        number = layer % self.depth
        if (
            values.shape[2] == self.of(layer).shape[1]
        ):  # the prefill; a static cache has room behind it, which nobody sees
            rows = self._rows(number, values)
            keys = laid(self._keys(values, rows, number), rows, self.length, 3, fill)
            return laid(keys, rows, self.length, 2, fill)
        if self.kinds.get(number) == SLIDING:
            raise UserError(f"Decoder layer {number} remembers a window alone, whose keys a step does not tell apart.")
        rows = self._rows(self.trimmed.get(number, number), values)
        prompt = laid(self._keys(values, rows, number), rows, self.length, 3, fill)
        return torch.cat([prompt, values[..., rows.shape[1] :]], dim=3)

    @staticmethod
    def _keys(values: Tensor, columns: Tensor, layer: int) -> Tensor:
        if values.shape[3] < columns.shape[1]:
            raise UserError(
                f"{values.shape[3]} keys were given where decoder layer {layer} ran on {columns.shape[1]} tokens: the "
                "map is not of the last run."
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
                f"{values.shape[0]} rows were given, and the last prefill had {len(self.samples)}: they are not of it."
            )
        return columns.to(values.device)


def laid(values: Tensor, columns: Tensor, length: int, dim: int, fill: float = math.nan) -> Tensor:
    """`values` with the tokens of axis `dim` at their columns.

    Args:
        values: [B, ...], P long at `dim`.
        columns: [B, P] a column for each token, -1 for none. Where two share one, the first stands there.
        length: how long the axis becomes.
        fill: what stands where there is no token.
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
