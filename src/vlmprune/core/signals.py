"""What a method may ask for. A method declares needs; the runtime computes just those and hands them over by name.

Every signal comes as float32, one row per visual token that is still present when the method acts, in slot order:
scores of encoder patches have already been mapped to slots (a 2x2 merger averages four patches).
"""

from __future__ import annotations

from dataclasses import dataclass


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
class Features:
    """Projected features, the embeddings the LLM would see. Shape [n, D]."""


@dataclass(frozen=True)
class TowerFeatures:
    """The rows that the projector reads, one per slot, as `TowerRows(rows [n, C], cls [C] or None)`.

    Where several patches make one slot inside the projector (Qwen's merger) there are no such rows before it,
    and these are the projected features.
    """


@dataclass(frozen=True)
class ReceivedAttention:
    """Attention a token receives at an encoder layer: mean over heads and over all queries, CLS included. Shape [n]."""

    layer: EncoderLayer = USED


@dataclass(frozen=True)
class ClsAttention:
    """Attention the CLS token pays to each token at an encoder layer, mean over heads. Shape [n].

    On a tower without a CLS token this is the received attention, as VisionZip's authors advise.
    """

    layer: EncoderLayer = USED


@dataclass(frozen=True)
class EncoderKeys:
    """Attention keys of an encoder layer, mean over heads (after rotary embedding where there is one).

    `TowerRows(rows [n, head_dim], cls [head_dim] or None)`.
    """

    layer: EncoderLayer = USED


@dataclass(frozen=True)
class LastQueryAttention:
    """What the last prompt token attends to at decoder layer K-1, for a method that acts before layer K.

    Post-softmax over everything that token sees, mean over heads, visual columns only. Shape [n].
    """


@dataclass(frozen=True)
class TextQueryAttention:
    """The same row for each text token between the image and the end of the prompt. Shape [T, n]."""


@dataclass(frozen=True)
class DecoderKeys:
    """Keys of decoder layer K-1 after rotary embedding, KV heads side by side: `Tokens(visual [n, C], text [T, C])`."""


@dataclass(frozen=True)
class DecoderStates:
    """Output of decoder layer K-1 through the LLM's final norm: `Tokens(visual [n, D], text [T, D])`."""


Need = (
    Features
    | TowerFeatures
    | ReceivedAttention
    | ClsAttention
    | EncoderKeys
    | LastQueryAttention
    | TextQueryAttention
    | DecoderKeys
    | DecoderStates
)
ENCODER_NEEDS = (TowerFeatures, ReceivedAttention, ClsAttention, EncoderKeys)
DECODER_NEEDS = (LastQueryAttention, TextQueryAttention, DecoderKeys, DecoderStates)
