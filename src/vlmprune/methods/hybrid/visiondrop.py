"""VisionDrop: VisionZip before the LLM, then attention among the image's own tokens at three depths, and merging."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from vlmprune.author import (
    At, AtLeast, DecoderKeys, HiddenStates, ImageView, Keep, Merged, ModelInfo, Need, OrdersParts, Share, UserError,
    VisualQueryAttention, ascending, top_k,
)  # fmt: skip
from vlmprune.methods.contextual import clusters, contextual_count, contextual_tokens, members_of
from vlmprune.methods.decoder.staged import Staged, interpolate
from vlmprune.methods.vision.visionzip import VisionZip

# 48 tokens before the LLM, then 35, 26 and 19, are 32 on average; the same in proportion, up to all tokens before it.
COUNTS = {384: (576.0, 420.0, 312.0, 228.0)}


@dataclass
class VisionDrop(OrdersParts, Staged):
    """Drops and merges tokens four times by what the image says of itself: no text takes part in any choice.

    Paper: Rethinking Visual Token Reduction in LVLMs under Cross-modal Misalignment (AAAI 2026, arXiv 2506.22283).

    Formula: before the LLM, VisionZip (see there). Before layer l, of the n tokens x [n, D] that are left:
    A [H, n, L] = causal softmax rows of the image's own tokens by the norm, projections and rotary embedding of layer
    l, over all L tokens; score [n] = mean over heads and rows of A, in the columns of the image. Dominant: the top
    k - C. Of the M others in order, every (M // C)-th is a target; every other one joins the target with the most
    similar key (cosine of layer l's rotated keys, averaged over heads). A contextual token is its target plus the mean
    of its members. Order: dominant, contextual; the next act sees them in this order.
    Time O(H n L d + n C d) per act, memory O(n L).

    Defaults: `keep` is the average over layers. On LLaVA-1.5, 32 tokens are 48 before the LLM and 35, 26 and 19 before
    layers 8, 16 and 24 of 32. Ours: other budgets keep these proportions, up to two thirds of all tokens, and are
    interpolated from there to all of them; layers scale with the depth. Positions: renumbered on LLaVA, kept
    elsewhere, where tokens are in the order of their positions.

    Args:
        layers: decoder layers (0-based) before which it acts, at most three.
        contextual: C as a share of what an act keeps (float) or a number of tokens (int); at least one token stays
            dominant. The default gives the authors' 6 of 48, 5 of 35, 4 of 26 and 3 of 19.

    Differences from the authors' code:
        - If as many tokens arrive as an act keeps, they stay in order; theirs puts the contextual ones behind.
        - C = 0 drops the rest; theirs fails. A zero key is similar to nothing; theirs yields NaN.
        - Any batch and padding, and images of different size; theirs pads on the right and counts one size for all.
        - Only LLaVA-1.5 runs in theirs. Ours elsewhere: heads that share keys count once in the mean of keys; without
          a CLS token VisionZip reads the attention received; inside the LLM all tiles or frames compete together.
    """

    name: ClassVar[str] = "visiondrop"
    stage: ClassVar[str] = "vision, decoder"
    summary: ClassVar[str] = "VisionZip, then tokens that the image's own tokens attend to; the rest is merged"
    budget_means: ClassVar[str] = "an average over layers"
    looks_ahead: ClassVar[bool] = True
    merges: ClassVar[bool] = True

    contextual: Annotated[float, Share] | Annotated[int, AtLeast(0)] = 0.135

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layers is not None and len(self.layers) > 3:
            raise UserError(f"visiondrop: layers={self.layers} are more than the three that there are budgets for.")

    @property
    def first(self) -> VisionZip:
        """What is done before the LLM."""
        return VisionZip(contextual=self.contextual)

    def positions(self, info: ModelInfo) -> str:
        return "compact" if info.llava else "original"

    def pool(self, info: ModelInfo) -> str:
        return self.first.pool(info)

    def needs(self, info: ModelInfo) -> dict[str, Need]:
        return {**self.first.needs(info), **self.needs_inside()}

    def needs_inside(self) -> dict[str, Need]:
        visual = VisualQueryAttention(ahead=True)
        return {"visual": visual, "rotated": DecoderKeys(joined=False, ahead=True), "states": HiddenStates()}

    def acts(self, info: ModelInfo, keep: Keep) -> Sequence[int | At | None]:
        inside = self.needs_inside()
        later = [At(layer, inside, pool="image", sees_every_slot=True) for layer in self.schedule(info)]
        return [At(None, self.first.needs(info)), *later]

    def usual_layers(self, info: ModelInfo) -> tuple[tuple[int, ...], int]:
        return (8, 16, 24), 32

    def shares(self, share: float, layers: Sequence[int], info: ModelInfo) -> Sequence[float]:
        return [count / 576 for count in interpolate(COUNTS, share, of=576)]

    def select(self, view: ImageView) -> Merged:
        if view.act.layer is None:
            return self.first.select(view)
        count = contextual_count(self.contextual, view.keep)
        dominant = ascending(top_k(view["visual"], view.keep - count))
        parts, states = clusters(view["rotated"].visual.float(), dominant, count), view["states"].visual
        features = torch.cat([states[dominant], contextual_tokens(states, parts)])
        anchors = torch.cat([dominant, parts.targets])
        unchanged = torch.arange(len(anchors), device=anchors.device) < len(dominant)
        made = Merged(features, anchors, unchanged=unchanged, members=members_of(parts, view.n))
        return made.ordered(anchors.argsort()) if self.positions(view.info) == "original" else made

    def reading_order(self, view: ImageView, parts: Mapping[int, Tensor]) -> Tensor | None:
        return self.first.reading_order(view, parts) if view.act.layer is None else None
