"""The signals that come with vlmprune. A method declares needs; the runtime reads just those and hands them over.

Every signal comes as float32, one row per visual token that is still present when the method acts, in slot order:
scores of encoder patches have already been mapped to slots (a 2x2 merger averages four patches).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vlmprune.core.needs import (
    USED,
    DecoderNeed,
    DecoderReading,
    EncoderLayer,
    EncoderNeed,
    EncoderReading,
    PromptNeed,
    PromptReading,
    Tower,
)
from vlmprune.core.shape import Load
from vlmprune.core.view import Aligned, Tokens, TowerRows

_FREE = "nothing: it is there"


# ---------------------------------------------------------------- of the prompt


@dataclass(frozen=True)
class Features(PromptNeed):
    """Projected features, the embeddings the LLM would see. Shape [n, D]."""

    words: ClassVar[str] = "projected features"
    cost_words: ClassVar[str] = _FREE

    def read(self, at: PromptReading) -> Tensor:
        return at.features.float()

    def flops(self, load: Load) -> float:
        return load.pairs(load.shape.width)


@dataclass(frozen=True)
class PromptText(PromptNeed):
    """Embeddings of the prompt's text tokens as the LLM reads them. Shape [T, D].

    All of them, or with `after_image` those between the image and the end of the prompt: the instruction.
    """

    words: ClassVar[str] = "embeddings of the text"
    cost_words: ClassVar[str] = _FREE

    after_image: bool = False

    def take(self, value: Tensor, tokens: Tensor, frame: int | None = None) -> Tensor:
        return value

    def read(self, at: PromptReading) -> Tensor:
        return at.text(self.after_image)

    def flops(self, load: Load) -> float:
        return 0.0  # what is compared is counted with the image's side of it


@dataclass(frozen=True)
class Alignment(PromptNeed):
    """What the image's tokens and the instruction have in common, as `Aligned(visual [n, C], text [M, C], clip)`.

    With a text tower given to `prune` that belongs to the model's CLIP tower, rows of the tower and the instruction,
    both projected into CLIP's common space (the instruction cut into pieces of 77 tokens, or with `truncate` its first
    piece only). Otherwise the projected features and the LLM's embeddings of the instruction's tokens.
    """

    words: ClassVar[str] = "tokens and instruction in one space"
    cost_words: ClassVar[str] = "with CLIP's text tower that tower, and two projections; else nothing"
    of_patches: ClassVar[bool] = True
    compares_text: ClassVar[bool] = True

    truncate: bool = False

    @property
    def encoder(self) -> tuple[EncoderNeed, ...]:
        return (_RowsIfAny(),)

    def take(self, value: Aligned, tokens: Tensor, frame: int | None = None) -> Aligned:
        return value._replace(visual=value.visual[tokens])

    def read(self, at: PromptReading) -> Aligned:
        return at.aligned(at.encoder(*self.encoder), self.truncate)

    def flops(self, load: Load) -> float:
        return 2.0 * load.shape.width * load.text * load.present


# ---------------------------------------------------------------- of the vision encoder


@dataclass(frozen=True)
class TowerFeatures(EncoderNeed):
    """The rows that the projector reads, one per slot, as `TowerRows(rows [n, C], cls [frames, C] or None)`.

    Where several patches make one slot inside the projector (Qwen's merger, pixel shuffle) there are no such rows
    before it, and these are the projected features, without a CLS row.
    """

    words: ClassVar[str] = "rows before the projector"
    cost_words: ClassVar[str] = _FREE
    taps: ClassVar[tuple[str, ...]] = ("rows",)

    @property
    def layers(self) -> tuple[EncoderLayer, ...]:
        return (USED,)

    def read(self, at: EncoderReading) -> TowerRows:
        return at.rows()

    def flops(self, load: Load) -> float:
        return load.pairs(load.shape.encoder_width)


@dataclass(frozen=True)
class _RowsIfAny(TowerFeatures):
    """The same on a model whose encoder cannot be told apart by slots: the projected features there."""

    required: ClassVar[bool] = False


@dataclass(frozen=True)
class ReceivedAttention(EncoderNeed):
    """Attention a token receives at an encoder layer: mean over heads and over all queries, CLS included. Shape [n].

    `joined`: all heads side by side taken as one.
    """

    words: ClassVar[str] = "attention received"
    cost_words: ClassVar[str] = "the layer's attention once more, O(H N^2 d), in chunks of rows"
    taps: ClassVar[tuple[str, ...]] = ("attention",)

    layer: EncoderLayer = USED
    joined: bool = False

    def read(self, at: EncoderReading) -> Tensor:
        return at.received_attention(self.layer, self.joined)

    def flops(self, load: Load) -> float:
        return 2.0 * load.shape.encoder_width * load.encoder_tokens**2


@dataclass(frozen=True)
class ClsAttention(EncoderNeed):
    """Attention the CLS token pays to each token at an encoder layer, mean over heads. Shape [n].

    On a tower without a CLS token this is the received attention, as VisionZip's authors advise.
    `joined`: all heads side by side taken as one, its logits over the root of the tower's full width (PruMerge).
    """

    words: ClassVar[str] = "attention of the CLS token"
    cost_words: ClassVar[str] = "a row per head, O(H N d); without a CLS token as above"
    taps: ClassVar[tuple[str, ...]] = ("attention",)

    layer: EncoderLayer = USED
    joined: bool = False

    def resolved(self, tower: Tower) -> EncoderNeed:
        kind = ClsAttention if tower.has_cls else ReceivedAttention
        return kind(tower.layer(self.layer), self.joined)

    def read(self, at: EncoderReading) -> Tensor:
        return at.cls_attention(self.layer, self.joined)

    def flops(self, load: Load) -> float:
        if not load.shape.has_cls:
            return ReceivedAttention(self.layer).flops(load)
        return 2.0 * load.shape.encoder_width * load.encoder_tokens


@dataclass(frozen=True)
class EncoderKeys(EncoderNeed):
    """Attention keys of an encoder layer, mean over heads (after rotary embedding where there is one).

    `TowerRows(rows [n, head_dim], cls [frames, head_dim] or None)`; there are CLS rows where TowerFeatures has them.
    `joined`: the heads side by side instead of their mean, [n, heads * head_dim].
    """

    words: ClassVar[str] = "encoder keys"
    cost_words: ClassVar[str] = "a mean over heads, O(H N d)"
    taps: ClassVar[tuple[str, ...]] = ("attention",)

    layer: EncoderLayer = USED
    joined: bool = False

    def read(self, at: EncoderReading) -> TowerRows:
        return at.keys(self.layer, self.joined)

    def flops(self, load: Load) -> float:
        return load.pairs(load.shape.encoder_width // load.shape.encoder_heads)


@dataclass(frozen=True)
class Pixels(EncoderNeed):
    """The encoder's input at all patches that a token covers, side by side. Shape [n, P].

    In [0, 1], the processor's normalisation undone (that of the processor beside the model's weights, or else the one
    the family is published with), or with `normalized` as the encoder gets it. Where the model resizes the patches'
    features into slots (a shrunk canvas, pooled video), so are these.
    """

    words: ClassVar[str] = "pixels"
    cost_words: ClassVar[str] = "a copy of the picture"
    required: ClassVar[bool] = False

    normalized: bool = False

    def read(self, at: EncoderReading) -> Tensor:
        return at.pixels(self.normalized)

    def flops(self, load: Load) -> float:
        return load.pairs(load.shape.patch_inputs * load.shape.merge)


# ---------------------------------------------------------------- of a decoder layer


@dataclass(frozen=True)
class LastQueryAttention(DecoderNeed):
    """What the last prompt token attends to at decoder layer K-1.

    Post-softmax over everything that token sees, mean over heads, visual columns only. Shape [n].
    `ahead`: at layer K, by its own norm and projections, before it has run (PyramidDrop).
    """

    words: ClassVar[str] = "attention of the last prompt token"
    cost_words: ClassVar[str] = "a row per head, O(H L d)"

    ahead: bool = False

    @property
    def taps(self) -> tuple[str, ...]:
        return ("ahead",) if self.ahead else ("attention",)

    def read(self, at: DecoderReading) -> Tensor:
        return at.attention(at.last, ahead=self.ahead)[0, at.image]

    def flops(self, load: Load) -> float:
        shape = load.shape
        projections = 2.0 * shape.width * (shape.q_width + 2 * shape.kv_width) * (load.text + load.present)
        return load.row + (projections if self.ahead else 0.0)


@dataclass(frozen=True)
class TextQueryAttention(DecoderNeed):
    """The same row for each text token between the image and the end of the prompt. Shape [T, n].

    `heads`: "mean" or "max" over them, or "all" for [H, T, n].
    """

    words: ClassVar[str] = "attention of the text"
    cost_words: ClassVar[str] = "T rows per head, O(H T L d)"
    taps: ClassVar[tuple[str, ...]] = ("attention",)

    heads: str = "mean"

    def take(self, value: Tensor, tokens: Tensor, frame: int | None = None) -> Tensor:
        return value[..., tokens]

    def read(self, at: DecoderReading) -> Tensor:
        return at.attention(at.text, self.heads)[..., at.image]

    def flops(self, load: Load) -> float:
        return load.row * load.text


@dataclass(frozen=True)
class VisualQueryAttention(DecoderNeed):
    """Attention each token receives at decoder layer K-1 from the image's own tokens, mean over them. Shape [n].

    `heads`: "mean" or "max" over them, before the mean over queries.
    """

    words: ClassVar[str] = "attention of the image's own tokens"
    cost_words: ClassVar[str] = "n rows per head, O(H n L d)"
    taps: ClassVar[tuple[str, ...]] = ("attention",)

    heads: str = "mean"

    def read(self, at: DecoderReading) -> Tensor:
        return at.attention(at.image, self.heads)[:, at.image].mean(0)

    def flops(self, load: Load) -> float:
        return load.row * load.present


@dataclass(frozen=True)
class TextSelfAttention(DecoderNeed):
    """Attention between the text tokens of `TextQueryAttention`, head by head. Shape [H, T, T]."""

    words: ClassVar[str] = "attention within the text"
    cost_words: ClassVar[str] = "nothing more where the text's attention is read"
    taps: ClassVar[tuple[str, ...]] = ("attention",)

    def take(self, value: Tensor, tokens: Tensor, frame: int | None = None) -> Tensor:
        return value

    def read(self, at: DecoderReading) -> Tensor:
        return at.attention(at.text, "all")[..., at.text]

    def flops(self, load: Load) -> float:
        return load.row * load.text


@dataclass(frozen=True)
class _TokensNeed(DecoderNeed):
    def take(self, value: Tokens, tokens: Tensor, frame: int | None = None) -> Tokens:
        return Tokens(value.visual[tokens], value.text)


@dataclass(frozen=True)
class DecoderKeys(_TokensNeed):
    """Keys of decoder layer K-1 after rotary embedding, KV heads side by side: `Tokens(visual [n, C], text [T, C])`."""

    words: ClassVar[str] = "LLM keys"
    cost_words: ClassVar[str] = "one projection, O(L D C)"
    taps: ClassVar[tuple[str, ...]] = ("attention",)

    def read(self, at: DecoderReading) -> Tokens:
        return Tokens(at.keys(at.image), at.keys(at.text))

    def flops(self, load: Load) -> float:
        return load.pairs(load.shape.kv_width)


@dataclass(frozen=True)
class DecoderStates(_TokensNeed):
    """Output of decoder layer K-1 through the LLM's final norm: `Tokens(visual [n, D], text [T, D])`.

    `norm`: "final", or "next" for the one with which decoder layer K begins.
    """

    words: ClassVar[str] = "hidden states behind the final norm"
    cost_words: ClassVar[str] = "that norm, O((n + T) D)"
    taps: ClassVar[tuple[str, ...]] = ("output",)

    norm: str = "final"

    def read(self, at: DecoderReading) -> Tokens:
        return Tokens(*at.layer_output(torch.cat([at.image, at.text]), self.norm).split([len(at.image), len(at.text)]))

    def flops(self, load: Load) -> float:
        return load.pairs(load.shape.width)


@dataclass(frozen=True)
class HiddenStates(_TokensNeed):
    """Hidden states that would enter decoder layer K, as they are: `Tokens(visual [n, D], text [T, D])`."""

    words: ClassVar[str] = "hidden states"
    cost_words: ClassVar[str] = _FREE
    taps: ClassVar[tuple[str, ...]] = ("output",)

    def read(self, at: DecoderReading) -> Tokens:
        return Tokens(*at.layer_output(torch.cat([at.image, at.text])).split([len(at.image), len(at.text)]))

    def flops(self, load: Load) -> float:
        return load.pairs(load.shape.width)


@dataclass(frozen=True)
class LayerInput(DecoderNeed):
    """Hidden states that entered decoder layer K-1. Shape [n, D]."""

    words: ClassVar[str] = "hidden states that entered the layer"
    cost_words: ClassVar[str] = _FREE
    taps: ClassVar[tuple[str, ...]] = ("input",)

    def read(self, at: DecoderReading) -> Tensor:
        return at.layer_input(at.image)

    def flops(self, load: Load) -> float:
        return load.pairs(load.shape.width)


@dataclass(frozen=True)
class MlpInput(DecoderNeed):
    """What the MLP of decoder layer K-1 read: after attention, residual and norm. Shape [n, D]."""

    words: ClassVar[str] = "what the MLP read"
    cost_words: ClassVar[str] = _FREE
    taps: ClassVar[tuple[str, ...]] = ("mlp_input",)

    def read(self, at: DecoderReading) -> Tensor:
        return at.mlp_input(at.image)

    def flops(self, load: Load) -> float:
        return load.pairs(load.shape.width)


@dataclass(frozen=True)
class EnteredEmbeddings(DecoderNeed):
    """Embeddings with which the image's tokens entered the LLM, whatever became of them since. Shape [N, D]."""

    words: ClassVar[str] = "embeddings with which the image entered"
    cost_words: ClassVar[str] = _FREE

    def take(self, value: Tensor, tokens: Tensor, frame: int | None = None) -> Tensor:
        return value

    def read(self, at: DecoderReading) -> Tensor:
        return at.entered()

    def flops(self, load: Load) -> float:
        return 2.0 * load.shape.width * load.text * load.present


@dataclass(frozen=True)
class RotaryGain(DecoderNeed):
    """What decoder layer K-1's rotary embedding makes of logits whose query and key are all ones. Shape [T, n].

    For each text token of `TextQueryAttention`: scaling * (R_p 1) . (R_q 1), positions p and q, R the rotation. Among
    d rotated dimensions it is 2 scaling sum_i cos((p - q) theta_i), i = 1..d/2: it falls with the distance.
    """

    words: ClassVar[str] = "what rotary embedding does to logits of ones"
    cost_words: ClassVar[str] = "O(T n d)"
    taps: ClassVar[tuple[str, ...]] = ("attention",)

    def take(self, value: Tensor, tokens: Tensor, frame: int | None = None) -> Tensor:
        return value[:, tokens]

    def read(self, at: DecoderReading) -> Tensor:
        return at.rotary_gain(at.text, at.image)

    def flops(self, load: Load) -> float:
        return 0.0  # counted with the attention that it corrects
