"""What a method may ask for. A method declares needs; the runtime computes just those and hands them over by name.

Every signal comes as float32, one row per visual token that is still present when the method acts, in slot order:
scores of encoder patches have already been mapped to slots (a 2x2 merger averages four patches).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from vlmprune.core.view import Aligned, Tokens, TowerRows


@dataclass(frozen=True)
class Depth:
    """Encoder layer `number`, counted from 1 as papers do, of a tower of `of` layers.

    On another tower it is the layer at the same share of the depth: 9 of 24 is the second of five. On a tower with
    window attention it is the nearest layer with full attention (means over a window only compare its own tokens).
    """

    number: int
    of: int

    def index(self, depth: int, full_layers: tuple[int, ...] | None = None) -> int:
        """0-based layer of a tower with `depth` layers, of which `full_layers` (None: all) see the whole image."""
        exact = min(depth - 1, max(0, round(self.number * depth / self.of) - 1))
        if not full_layers:
            return exact
        return min(full_layers, key=lambda layer: (abs(layer - exact), layer))


USED = "used"  # the encoder layer whose output the projector reads (LLaVA's -2 is layer 22 of 0..23)
EncoderLayer = int | str | Depth


@dataclass(frozen=True)
class Need:
    """Base of all needs."""

    def take(self, value: Any, tokens: Tensor, frame: int | None = None) -> Any:
        """The signal of only these tokens; all of them are of one frame (or tile) where `frame` is given."""
        return value[tokens]


@dataclass(frozen=True)
class EncoderNeed(Need):
    """Read from the vision encoder. Slots that no patch stands behind (image_newline, CLS) have no such signal."""


@dataclass(frozen=True)
class DecoderNeed(Need):
    """Read from decoder layer K-1, for a method that acts before layer K."""


@dataclass(frozen=True)
class Features(Need):
    """Projected features, the embeddings the LLM would see. Shape [n, D]."""


@dataclass(frozen=True)
class PromptText(Need):
    """Embeddings of the prompt's text tokens as the LLM reads them. Shape [T, D].

    All of them, or with `after_image` those between the image and the end of the prompt: the instruction.
    """

    after_image: bool = False

    def take(self, value: Tensor, tokens: Tensor, frame: int | None = None) -> Tensor:
        return value


@dataclass(frozen=True)
class _TowerNeed(EncoderNeed):
    def take(self, value: TowerRows, tokens: Tensor, frame: int | None = None) -> TowerRows:
        cls = value.cls
        return TowerRows(value.rows[tokens], cls if cls is None or frame is None else cls[frame : frame + 1])


@dataclass(frozen=True)
class TowerFeatures(_TowerNeed):
    """The rows that the projector reads, one per slot, as `TowerRows(rows [n, C], cls [frames, C] or None)`.

    Where several patches make one slot inside the projector (Qwen's merger, pixel shuffle) there are no such rows
    before it, and these are the projected features, without a CLS row.
    """


@dataclass(frozen=True)
class ReceivedAttention(EncoderNeed):
    """Attention a token receives at an encoder layer: mean over heads and over all queries, CLS included. Shape [n]."""

    layer: EncoderLayer = USED


@dataclass(frozen=True)
class ClsAttention(EncoderNeed):
    """Attention the CLS token pays to each token at an encoder layer, mean over heads. Shape [n].

    On a tower without a CLS token this is the received attention, as VisionZip's authors advise.
    `joined`: all heads side by side taken as one, its logits over the root of the tower's full width (PruMerge).
    """

    layer: EncoderLayer = USED
    joined: bool = False


@dataclass(frozen=True)
class EncoderKeys(_TowerNeed):
    """Attention keys of an encoder layer, mean over heads (after rotary embedding where there is one).

    `TowerRows(rows [n, head_dim], cls [frames, head_dim] or None)`; there are CLS rows where TowerFeatures has them.
    `joined`: the heads side by side instead of their mean, [n, heads * head_dim].
    """

    layer: EncoderLayer = USED
    joined: bool = False


@dataclass(frozen=True)
class Alignment(EncoderNeed):
    """What the image's tokens and the instruction have in common, as `Aligned(visual [n, C], text [M, C], clip)`.

    With a text tower given to `prune` that belongs to the model's CLIP tower, rows of the tower and the instruction,
    both projected into CLIP's common space (the instruction cut into pieces of 77 tokens, or with `truncate` its first
    piece only). Otherwise the projected features and the LLM's embeddings of the instruction's tokens.
    """

    truncate: bool = False

    def take(self, value: Aligned, tokens: Tensor, frame: int | None = None) -> Aligned:
        return value._replace(visual=value.visual[tokens])


@dataclass(frozen=True)
class Pixels(EncoderNeed):
    """The encoder's input at all patches that a token covers, side by side. Shape [n, P].

    In [0, 1], the processor's normalisation undone (that of the processor beside the model's weights, or else the one
    the family is published with), or with `normalized` as the encoder gets it. Where the model resizes the patches'
    features into slots (a shrunk canvas, pooled video), so are these.
    """

    normalized: bool = False


@dataclass(frozen=True)
class LastQueryAttention(DecoderNeed):
    """What the last prompt token attends to at decoder layer K-1.

    Post-softmax over everything that token sees, mean over heads, visual columns only. Shape [n].
    `ahead`: at layer K, by its own norm and projections, before it has run (PyramidDrop).
    """

    ahead: bool = False


@dataclass(frozen=True)
class TextQueryAttention(DecoderNeed):
    """The same row for each text token between the image and the end of the prompt. Shape [T, n].

    `heads`: "mean" or "max" over them, or "all" for [H, T, n].
    """

    heads: str = "mean"

    def take(self, value: Tensor, tokens: Tensor, frame: int | None = None) -> Tensor:
        return value[..., tokens]


@dataclass(frozen=True)
class VisualQueryAttention(DecoderNeed):
    """Attention each token receives at decoder layer K-1 from the image's own tokens, mean over them. Shape [n].

    `heads`: "mean" or "max" over them, before the mean over queries.
    """

    heads: str = "mean"


@dataclass(frozen=True)
class TextSelfAttention(DecoderNeed):
    """Attention between the text tokens of `TextQueryAttention`, head by head. Shape [H, T, T]."""

    def take(self, value: Tensor, tokens: Tensor, frame: int | None = None) -> Tensor:
        return value


@dataclass(frozen=True)
class _TokensNeed(DecoderNeed):
    def take(self, value: Tokens, tokens: Tensor, frame: int | None = None) -> Tokens:
        return Tokens(value.visual[tokens], value.text)


@dataclass(frozen=True)
class DecoderKeys(_TokensNeed):
    """Keys of decoder layer K-1 after rotary embedding, KV heads side by side: `Tokens(visual [n, C], text [T, C])`."""


@dataclass(frozen=True)
class DecoderStates(_TokensNeed):
    """Output of decoder layer K-1 through the LLM's final norm: `Tokens(visual [n, D], text [T, D])`.

    `norm`: "final", or "next" for the one with which decoder layer K begins.
    """

    norm: str = "final"


@dataclass(frozen=True)
class HiddenStates(_TokensNeed):
    """Hidden states that would enter decoder layer K, as they are: `Tokens(visual [n, D], text [T, D])`."""


@dataclass(frozen=True)
class LayerInput(DecoderNeed):
    """Hidden states that entered decoder layer K-1. Shape [n, D]."""


@dataclass(frozen=True)
class MlpInput(DecoderNeed):
    """What the MLP of decoder layer K-1 read: after attention, residual and norm. Shape [n, D]."""


@dataclass(frozen=True)
class EnteredEmbeddings(DecoderNeed):
    """Embeddings with which the image's tokens entered the LLM, whatever became of them since. Shape [N, D]."""

    def take(self, value: Tensor, tokens: Tensor, frame: int | None = None) -> Tensor:
        return value


@dataclass(frozen=True)
class RotaryGain(DecoderNeed):
    """What decoder layer K-1's rotary embedding makes of logits whose query and key are all ones. Shape [T, n].

    For each text token of `TextQueryAttention`: scaling * (R_p 1) . (R_q 1), positions p and q, R the rotation. Among
    d rotated dimensions it is 2 scaling sum_i cos((p - q) theta_i), i = 1..d/2: it falls with the distance.
    """

    def take(self, value: Tensor, tokens: Tensor, frame: int | None = None) -> Tensor:
        return value[:, tokens]
