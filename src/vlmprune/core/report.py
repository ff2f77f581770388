"""What happened in the last run under `prune`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import overload

from torch import Tensor

from vlmprune.core.errors import UserError
from vlmprune.core.spread import PromptColumns
from vlmprune.core.view import Grid, Whole

Kept = list[list[Tensor]]


@dataclass
class RunReport:
    """The last prefill under a session.

    Attributes:
        kept: one entry a sample; per image or video, in prompt order, the slots kept at the end (sorted LongTensor,
            counted from that image's first slot). Tokens that merge others count at the slot that lends the position.
        stages: the same after each stage: `[(layer, kept), ...]`, layer 0 = before the LLM.
        counts: visual tokens after each stage, per sample: `[(layer, counts), ...]`; unlike `stages` with merged tokens
            that have no slot of their own (VisionZip's CLS token).
        tokens: visual tokens before and after, per sample.
        merged: how many of the tokens after were returned by a method that merges, per sample; among them may be some
            that still stand for one patch alone.
        entering: visual tokens that enter each decoder layer, averaged over the layers, per sample.
        trimmed: decoder layers whose caches were cut after the prefill (`Method.trims_cache`), each with the layer
            whose tokens it holds since.
        layers: encoder layer (0-based) that was read for each signal, by `method.signal`.
        text: what text-guided methods compared the image with: "CLIP text tower" or "instruction embeddings".
        columns: per sample, the prompt column of each token that is left after the last layer, as `columns_of(-1)`.
        prompt: the same for every decoder layer, by which `columns_of` and `spread` go.
        grids: the slot grid of each image of each sample (its `frames` are tiles or a video's frames), None where there
            is none.
        cells: the cell of that grid that each slot shows, -1 for a slot that shows none (image_newline, CLS).
        wholes: how the slots of each image of each sample cover its picture, for drawing; nothing for a video.
        fused: by decoder layer whose attention Prune-Aware Fusion edited, the share of attention rows (a query at a
            head) among those that see a candidate in which it raised anything.
        seconds: time spent scoring and selecting (attention statistics and the methods' own work); of images from
            `encode_images`, whose statistics serve several methods, the selecting alone.
    """

    kept: Kept = field(default_factory=list)
    stages: list[tuple[int, Kept]] = field(default_factory=list)
    counts: list[tuple[int, list[int]]] = field(default_factory=list)
    tokens: list[tuple[int, int]] = field(default_factory=list)
    merged: list[int] = field(default_factory=list)
    entering: list[float] = field(default_factory=list)
    trimmed: dict[int, int] = field(default_factory=dict)
    layers: dict[str, int] = field(default_factory=dict)
    text: str | None = None
    columns: Tensor | None = None
    prompt: PromptColumns | None = None
    grids: list[list[Grid | None]] = field(default_factory=list)
    cells: Kept = field(default_factory=list)
    wholes: list[list[tuple[Whole, ...]]] = field(default_factory=list)
    fused: dict[int, float] = field(default_factory=dict)
    seconds: float = 0.0

    def columns_of(self, layer: int) -> Tensor:
        """Which columns of the prompt the tokens stand at that a decoder layer ran on.

        Args:
            layer: 0-based; -1 is the last.

        Returns:
            LongTensor [samples, P], in the layer's order; -1 for a filler on the left. A merged token stands at the
            column of its anchor, one without a slot of its own (VisionZip's CLS token) at that of a token behind it.

        Raises:
            UserError: no such layer, or no prefill with images yet.
        """
        return self._prompt().of(layer)

    @overload
    def spread(self, values: Tensor, layer: int | None = None, fill: float = math.nan) -> Tensor: ...
    @overload
    def spread(
        self, values: Sequence[Tensor | None], layer: None = None, fill: float = math.nan
    ) -> tuple[Tensor | None, ...]: ...
    def spread(
        self, values: Tensor | Sequence[Tensor | None], layer: int | None = None, fill: float = math.nan
    ) -> Tensor | tuple[Tensor | None, ...]:
        """Lay what this prefill returned back over the S columns of the prompt.

        Args:
            values: `hidden_states` or `attentions` as the model returned them, a tuple over layers; or one tensor:
                states or logits [B, P, D] to [B, S, D]; a map [B, H, P, P] to [B, H, S, S]; of a step of decoding the
                rows [B, H, Q, P + t] to [B, H, Q, S + t], where the t keys of later tokens stay as they are. A map
                under a static cache loses the room behind the prompt.
            layer: of a single tensor, the decoder layer that ran on these tokens, by default the last (logits,
                `last_hidden_state`). `hidden_states[i]` is what layer i-1 put out, of the tokens before a cut at i.
            fill: what stands where a token was dropped, and at padding.

        Returns:
            New tensors of the same type and device. A merged token stands at the column of its anchor, one without a
            slot of its own nowhere, and of two with one anchor the first.

        Raises:
            UserError: the shapes are not of this prefill, the rows are of a sliding window or behind an older cache, or
                no prefill with images was run yet.
        """
        if isinstance(values, Tensor):
            return self._prompt().spread(values, -1 if layer is None else layer, fill)
        if layer is not None:
            raise UserError("layer= goes with a single tensor: the entries of a tuple are told by their order.")
        return self._prompt().spread_all(values, fill)

    def _prompt(self) -> PromptColumns:
        if self.prompt is None:
            raise UserError("No prompt with images was run under this session yet.")
        return self.prompt
