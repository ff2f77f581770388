"""What happened in the last run under `prune`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import overload

import torch
from torch import Tensor

from vlmprune.core.errors import UserError
from vlmprune.core.fates import Fate
from vlmprune.core.spread import PromptColumns
from vlmprune.core.view import Grid, Whole

Kept = list[list[Tensor]]
CLIP, WORDS, INSTRUCTION = "CLIP text tower", "words of the question", "instruction embeddings"  # of `RunReport.text`


@dataclass(repr=False)
class RunReport:
    """The last prefill under a session.

    Attributes:
        kept: one entry per sample; for each image or video, in prompt order, the slots kept at the end (sorted
            LongTensor, counted from that image's first slot). A merged token is at the slot that lends its position.
        stages: the same after each stage: `[(layer, kept), ...]`, layer 0 = before the LLM.
        counts: visual tokens after each stage, per sample: `[(layer, counts), ...]`. Unlike `stages`, this counts
            merged tokens that have no slot of their own too (VisionZip's CLS token).
        tokens: visual tokens before and after, per sample.
        merged: how many of the tokens after pruning come from a method that merges, per sample; some of them may stand
            for a single patch.
        entering: visual tokens that enter each decoder layer, averaged over the layers, per sample.
        trimmed: decoder layers whose caches were cut after the prefill (`Method.trims_cache`), each with the layer
            whose tokens its cache has held since then.
        layers: the encoder layer (0-based) that each signal was read from, under the name `method.signal`.
        text: what text-guided methods compared the image with: "CLIP text tower", "words of the question" (with a
            tokenizer) or "instruction embeddings"; in a chain whose methods differ, several of these.
        columns: per sample, the prompt column of each token that is left after the last layer, as `columns_of(-1)`.
        prompt: the same for every decoder layer; `columns_of` and `spread` use it.
        grids: the slot grid of each image of each sample (its `frames` are tiles or a video's frames), or None for an
            image without a grid.
        videos: whether each image of each sample is a video.
        cells: the cell of that grid that each slot shows, -1 for a slot that shows none (image_newline, CLS).
        wholes: how the slots of each image of each sample cover its picture, for drawing; empty for a video.
        fused: for each decoder layer whose attention Prune-Aware Fusion edited: of the attention rows (one query in one
            head) that see a candidate, the share in which it raised a logit.
        scores: what computed attention statistics: "torch", "triton" (its kernels, on a GPU), or both; None where none
            were read.
        gathered: for each cut before which Prune-Aware Fusion edited attention, the slots of the candidates that other
            tokens were made to attend to, per sample and image.
        fates: what became of the slots of each image of each sample; `joined`, `parts` and `ratings` read it.
        resized: the grid that each image of each sample was resized to (downsample), None where it was not.
        slot_pixels: pixels of the encoder's input across one slot, where the model's pictures can be resized.
        seconds: time spent scoring and selecting (attention statistics and the methods' own work). For images from
            `encode_images`, whose statistics several methods share, it is the time of selecting alone.
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
    videos: list[list[bool]] = field(default_factory=list)
    cells: Kept = field(default_factory=list)
    wholes: list[list[tuple[Whole, ...]]] = field(default_factory=list)
    fused: dict[int, float] = field(default_factory=dict)
    scores: str | None = None
    gathered: dict[int, Kept] = field(default_factory=dict)
    fates: list[list[Fate]] = field(default_factory=list)
    resized: list[list[Grid | None]] = field(default_factory=list)
    slot_pixels: int | None = None
    seconds: float = 0.0

    def __repr__(self) -> str:
        if not self.tokens:
            return "<RunReport: no prompt with images has run>"
        counts = [f"{before} -> {after}" for before, after in self.tokens[:4]]
        more = f", and {len(self.tokens) - 4} samples more" if len(self.tokens) > 4 else ""
        entering = sum(self.entering) / max(1, len(self.entering))
        return (
            f"<RunReport: {', '.join(counts)} visual tokens{more}; {entering:.1f} entering a layer on average; "
            f"{1000 * self.seconds:.1f} ms for scoring and selecting>"
        )

    def joined(self, stage: int = -1, sample: int = 0, number: int = 0) -> Tensor:
        """The token that each slot's patch is part of after a stage: itself, another it was merged into, or none.

        Args:
            stage: index into `stages`; by default the last.
            sample: which sample of the batch.
            number: which of its images or videos.

        Returns:
            [count] the slot at which that token stands; `core.fates.DROPPED` (-1) where there is none, `PLACELESS` (-2)
            where it stands at no slot, `UNTOLD` (-3) where the method does not say what it merged.
        """
        return self.fates[sample][number].joined(self._acts(stage))

    def parts(self, stage: int = -1, sample: int = 0, number: int = 0) -> dict[str, Tensor]:
        """The kept slots by the names that methods give to their kinds ("anchors"), after a stage; see `joined`."""
        return self.fates[sample][number].parts(self._acts(stage))

    def ratings(self, stage: int = -1, sample: int = 0, number: int = 0) -> Tensor:
        """How important the method found each slot's token, [count], float; higher is better.

        It is the score by which it chose, at the last act up to this stage that has one. Not a number for slots whose
        token was gone by then, and for methods that rate no token by itself (DivPrune compares them with each other).
        Arguments as for `joined`.
        """
        return self.fates[sample][number].ratings(self._acts(stage))

    def _acts(self, stage: int) -> int:
        """How many acts there were up to a stage, an index into `stages`."""
        return range(1, len(self.stages) + 1)[stage] if self.stages else 0

    def by_frame(self, sample: int = 0, number: int = 0) -> list[Tensor]:
        """The slots kept at the end of each frame of a video, or of each tile of an image, in order.

        Args:
            sample: which sample of the batch.
            number: which of its images or videos.

        Returns:
            For each frame the slots of `kept` that show a part of it, counted as there from the first slot of the
            whole; empty for a frame that lost all. A slot that shows no patch (newline, CLS) is in none of them.

        Raises:
            UserError: nobody knows which frame a slot shows.
        """
        grid, kept = self.grids[sample][number], self.kept[sample][number]
        if grid is None:
            raise UserError(
                "The visual tokens of this model form no grid that vlmprune knows: their frames cannot be told apart."
            )
        cells = self.cells[sample][number].cpu()[kept]
        frame = torch.where(cells >= 0, cells // (grid.rows * grid.cols), -1)
        return [kept[frame == number] for number in range(grid.frames)]

    def columns_of(self, layer: int) -> Tensor:
        """The prompt columns of the tokens that a decoder layer ran on.

        Args:
            layer: 0-based; -1 is the last.

        Returns:
            LongTensor [samples, P], in the layer's order; -1 for padding on the left. A merged token has the column of
            its anchor. One without a slot of its own (VisionZip's CLS token) has the column of a token after it.

        Raises:
            UserError: there is no such layer, or no prefill with images has run yet.
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
            values: `hidden_states` or `attentions` as the model returned them, a tuple over layers; or one tensor.
                States or logits go from [B, P, D] to [B, S, D], an attention map from [B, H, P, P] to [B, H, S, S],
                and the rows of a decoding step from [B, H, Q, P + t] to [B, H, Q, S + t], where the t keys of later
                tokens stay as they are. A map under a static cache loses the unused keys after the prompt.
            layer: for a single tensor, the decoder layer that ran on these tokens; by default the last (logits,
                `last_hidden_state`). `hidden_states[i]` is the output of layer i-1: its tokens are those before a cut
                at i.
            fill: the value where a token was dropped, and at padding.

        Returns:
            New tensors of the same type and device. A merged token stands at the column of its anchor; if two have the
            same anchor, the first one does. A merged token without a slot of its own stands nowhere.

        Raises:
            UserError: the shapes are not those of this prefill, the rows are of a sliding window or come after an older
                cache, or no prefill with images has run yet.
        """
        if isinstance(values, Tensor):
            return self._prompt().spread(values, -1 if layer is None else layer, fill)
        if layer is not None:
            raise UserError("Give layer= with a single tensor only: the entries of a tuple are told by their order.")
        return self._prompt().spread_all(values, fill)

    def _prompt(self) -> PromptColumns:
        if self.prompt is None:
            raise UserError("No prompt with images has run under this session yet: run the model on one first.")
        return self.prompt
