"""What happened in the last run under `prune`."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

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
        columns: per sample, the prompt column of each token that is left after the last layer (for aligning shortened
            `logits` or `hidden_states` with the prompt); -1 for a filler.
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
    grids: list[list[Grid | None]] = field(default_factory=list)
    cells: Kept = field(default_factory=list)
    wholes: list[list[tuple[Whole, ...]]] = field(default_factory=list)
    fused: dict[int, float] = field(default_factory=dict)
    seconds: float = 0.0
