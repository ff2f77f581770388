"""The signals that come with vlmprune. A method declares needs; the runtime reads just those and hands them over.

Every signal comes as float32, one row per visual token that is still present when the method acts, in slot order:
scores of encoder patches have already been mapped to slots (a 2x2 merger averages four patches).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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

_FREE = "nothing: the model computes it anyway"


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

    All text tokens, or with `after_image` only the instruction: those between the image and the end of the prompt.
    """

    words: ClassVar[str] = "embeddings of the text"
    cost_words: ClassVar[str] = _FREE
    of_text: ClassVar[bool] = True

    after_image: bool = False

    def take(self, value: Tensor, tokens: Tensor, frame: int | None = None) -> Tensor:
        return value

    def read(self, at: PromptReading) -> Tensor:
        return at.text(self.after_image)

    def flops(self, load: Load) -> float:
        return 0.0  # the comparison is counted with the image's signal


@dataclass(frozen=True)
class QuestionWords(PromptNeed):
    """Embeddings of words of the question, each by itself and without context, from the LLM's table. Shape [m, D].

    `pick` turns the question into the words that are wanted, of which each may be several tokens. If `prune` was given
    no tokenizer (and `session.question` is not set, which needs one), these are the embeddings of the instruction's
    tokens, as of `PromptText(after_image=True)`.
    """

    words: ClassVar[str] = "words of the question"
    cost_words: ClassVar[str] = "a look-up for each token"
    of_text: ClassVar[bool] = True
    reads_words: ClassVar[bool] = True

    pick: Callable[[str], Sequence[str]] = str.split

    def take(self, value: Tensor, tokens: Tensor, frame: int | None = None) -> Tensor:
        return value

    def read(self, at: PromptReading) -> Tensor:
        found = at.words(self.pick)
        return at.text(after_image=True) if found is None else found

    def flops(self, load: Load) -> float:
        return 0.0  # the comparison is counted with the image's signal


@dataclass(frozen=True)
class Alignment(PromptNeed):
    """The image's tokens and the instruction in one space, as `Aligned(visual [n, C], text [M, C], clip)`.

    If `prune` was given the text tower of the model's CLIP, these are rows of the vision tower and the instruction,
    both projected into CLIP's common space (the instruction in pieces of 77 tokens, or with `truncate` only the first
    piece). Otherwise they are the projected features and the LLM's embeddings of the instruction's tokens: those of the
    prompt after the image, or of `session.question` where that is set.
    """

    words: ClassVar[str] = "tokens and instruction in one space"
    cost_words: ClassVar[str] = "with CLIP's text tower: that tower and two projections; without it nothing"
    of_text: ClassVar[bool] = True
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

    If the projector itself makes one slot of several patches (Qwen's merger, pixel shuffle), it reads no such rows;
    then these are the projected features, without a CLS row.
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
class EncoderStates(EncoderNeed):
    """Output of an encoder layer, before any norm, as `TowerRows(rows [n, width], cls [frames, width] or None)`.

    If several patches make one slot, its row is their mean.
    """

    words: ClassVar[str] = "encoder states"
    cost_words: ClassVar[str] = _FREE
    taps: ClassVar[tuple[str, ...]] = ("states",)

    layer: EncoderLayer = USED

    def read(self, at: EncoderReading) -> TowerRows:
        return at.states(self.layer)

    def flops(self, load: Load) -> float:
        return load.pairs(load.shape.encoder_width)


@dataclass(frozen=True)
class _RowsIfAny(TowerFeatures):
    """The same, but the projected features on a model whose encoder tokens cannot be mapped to slots."""

    required: ClassVar[bool] = False


@dataclass(frozen=True)
class ReceivedAttention(EncoderNeed):
    """Attention a token receives at an encoder layer: mean over heads and over all queries, CLS included. Shape [n].

    `joined`: all heads, side by side, are treated as one. `heads`: "mean" or "sum" over heads.
    """

    words: ClassVar[str] = "attention received"
    cost_words: ClassVar[str] = "the layer's attention once more, O(H N^2 d), in chunks of rows"
    taps: ClassVar[tuple[str, ...]] = ("attention",)

    layer: EncoderLayer = USED
    joined: bool = False
    heads: str = "mean"

    def read(self, at: EncoderReading) -> Tensor:
        return at.received_attention(self.layer, self.joined, self.heads)

    def flops(self, load: Load) -> float:
        return 2.0 * load.shape.encoder_width * load.encoder_tokens**2


@dataclass(frozen=True)
class ClsAttention(EncoderNeed):
    """Attention the CLS token pays to each token at an encoder layer, mean over heads. Shape [n].

    On a tower without a CLS token this is the received attention, as VisionZip's authors advise.
    `joined`: all heads, side by side, are treated as one, with logits divided by the square root of the tower's full
    width (PruMerge). `heads`: "mean" or "sum" over heads.
    """

    words: ClassVar[str] = "attention of the CLS token"
    cost_words: ClassVar[str] = "a row per head, O(H N d); without a CLS token as for received attention"
    taps: ClassVar[tuple[str, ...]] = ("attention",)

    layer: EncoderLayer = USED
    joined: bool = False
    heads: str = "mean"

    def resolved(self, tower: Tower) -> EncoderNeed:
        kind = ClsAttention if tower.has_cls else ReceivedAttention
        return kind(tower.layer(self.layer), self.joined, self.heads)

    def read(self, at: EncoderReading) -> Tensor:
        return at.cls_attention(self.layer, self.joined, self.heads)

    def flops(self, load: Load) -> float:
        if not load.shape.has_cls:
            return ReceivedAttention(self.layer).flops(load)
        return 2.0 * load.shape.encoder_width * load.encoder_tokens


@dataclass(frozen=True)
class EncoderKeys(EncoderNeed):
    """Attention keys of an encoder layer, mean over heads (after rotary embedding where there is one).

    `TowerRows(rows [n, head_dim], cls [frames, head_dim] or None)`, with CLS rows wherever TowerFeatures has them.
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

    Values are in [0, 1]: the normalisation is undone that the processor saved with the model's weights uses, or else
    the one that the family is published with. With `normalized` they are as the encoder gets them. Where the model
    resizes features of patches into slots (a shrunk canvas, pooled video), the pixels are resized the same way.
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


def _projections(load: Load) -> float:
    """Operations for queries, keys and values of all tokens, which looking ahead computes once more."""
    return 2.0 * load.shape.projections * (load.text + load.present)


@dataclass(frozen=True)
class LastQueryAttention(DecoderNeed):
    """Attention that the last prompt token pays to each visual token at decoder layer K-1. Shape [n].

    Post-softmax over everything that token sees, mean over heads.
    `ahead`: at layer K instead, by that layer's norm and projections, before it has run (PyramidDrop).
    """

    words: ClassVar[str] = "attention of the last prompt token"
    cost_words: ClassVar[str] = "a row per head, O(H L d)"
    of_text: ClassVar[bool] = True

    ahead: bool = False

    @property
    def taps(self) -> tuple[str, ...]:
        return ("ahead",) if self.ahead else ("attention",)

    def read(self, at: DecoderReading) -> Tensor:
        return at.attention(at.last, ahead=self.ahead)[0, at.image]

    def flops(self, load: Load) -> float:
        return load.row + (_projections(load) if self.ahead else 0.0)


@dataclass(frozen=True)
class TextQueryAttention(DecoderNeed):
    """Attention of each text token after the image to each visual token at decoder layer K-1. Shape [T, n].

    The T text tokens are those between the image and the end of the prompt.
    `heads`: "mean" or "max" over heads, or "all" for [H, T, n].
    """

    words: ClassVar[str] = "attention of the text"
    cost_words: ClassVar[str] = "T rows per head, O(H T L d)"
    of_text: ClassVar[bool] = True
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
    """Attention each token receives at decoder layer K-1 from the image's own tokens, mean over these. Shape [n].

    `heads`: "mean" or "max" over heads, before the mean over queries.
    `ahead`: at layer K instead, by that layer's norm and projections, before it has run (VisionDrop).
    """

    words: ClassVar[str] = "attention of the image's own tokens"
    cost_words: ClassVar[str] = "n rows per head, O(H n L d)"

    heads: str = "mean"
    ahead: bool = False

    @property
    def taps(self) -> tuple[str, ...]:
        return ("ahead",) if self.ahead else ("attention",)

    def read(self, at: DecoderReading) -> Tensor:
        return at.attention(at.image, self.heads, self.ahead)[:, at.image].mean(0)

    def flops(self, load: Load) -> float:
        return load.row * load.present + (_projections(load) if self.ahead else 0.0)


@dataclass(frozen=True)
class TextSelfAttention(DecoderNeed):
    """Attention between the text tokens of `TextQueryAttention`, head by head. Shape [H, T, T]."""

    words: ClassVar[str] = "attention within the text"
    cost_words: ClassVar[str] = "nothing more if the attention of the text is read too"
    of_text: ClassVar[bool] = True
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
    """Keys of decoder layer K-1 after rotary embedding, KV heads side by side: `Tokens(visual [n, C], text [T, C])`.

    `joined`: if False, the mean over KV heads instead, C = head_dim.
    `ahead`: the keys of layer K instead, before it has run. A method reads them with another signal that looks ahead,
    which counts the projections.
    """

    words: ClassVar[str] = "LLM keys"
    cost_words: ClassVar[str] = "one projection, O(L D C)"

    joined: bool = True
    ahead: bool = False

    @property
    def taps(self) -> tuple[str, ...]:
        return ("ahead",) if self.ahead else ("attention",)

    def read(self, at: DecoderReading) -> Tokens:
        return Tokens(*(at.keys(tokens, self.joined, self.ahead) for tokens in (at.image, at.text)))

    def flops(self, load: Load) -> float:
        return load.pairs(load.shape.kv_width)


@dataclass(frozen=True)
class DecoderStates(_TokensNeed):
    """Output of decoder layer K-1 after the LLM's final norm: `Tokens(visual [n, D], text [T, D])`.

    `norm`: "final", or "next" for the norm at the start of decoder layer K.
    """

    words: ClassVar[str] = "hidden states after the final norm"
    cost_words: ClassVar[str] = "that norm, O((n + T) D)"
    taps: ClassVar[tuple[str, ...]] = ("output",)

    norm: str = "final"

    def read(self, at: DecoderReading) -> Tokens:
        return Tokens(*at.layer_output(torch.cat([at.image, at.text]), self.norm).split([len(at.image), len(at.text)]))

    def flops(self, load: Load) -> float:
        return load.pairs(load.shape.width)


@dataclass(frozen=True)
class HiddenStates(_TokensNeed):
    """Hidden states that would enter decoder layer K, without a norm: `Tokens(visual [n, D], text [T, D])`."""

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

    words: ClassVar[str] = "hidden states that enter the layer"
    cost_words: ClassVar[str] = _FREE
    taps: ClassVar[tuple[str, ...]] = ("input",)

    def read(self, at: DecoderReading) -> Tensor:
        return at.layer_input(at.image)

    def flops(self, load: Load) -> float:
        return load.pairs(load.shape.width)


@dataclass(frozen=True)
class LayerOutput(DecoderNeed):
    """Hidden states as decoder layer K-1 returned them. Shape [n, D].

    Some models add features of the encoder to them before layer K (deepstack). `HiddenStates` has these, `LayerOutput`
    does not.
    """

    words: ClassVar[str] = "hidden states that the layer returns"
    cost_words: ClassVar[str] = _FREE
    taps: ClassVar[tuple[str, ...]] = ("own_output",)

    def read(self, at: DecoderReading) -> Tensor:
        return at.own_output(at.image)

    def flops(self, load: Load) -> float:
        return load.pairs(load.shape.width)


@dataclass(frozen=True)
class MlpInput(DecoderNeed):
    """Input of the MLP of decoder layer K-1, after attention, residual and norm. Shape [n, D]."""

    words: ClassVar[str] = "input of the MLP"
    cost_words: ClassVar[str] = _FREE
    taps: ClassVar[tuple[str, ...]] = ("mlp_input",)

    def read(self, at: DecoderReading) -> Tensor:
        return at.mlp_input(at.image)

    def flops(self, load: Load) -> float:
        return load.pairs(load.shape.width)


@dataclass(frozen=True)
class EnteredEmbeddings(DecoderNeed):
    """Embeddings with which the image's N tokens entered the LLM, including those dropped since. Shape [N, D]."""

    words: ClassVar[str] = "the image's embeddings at the LLM's input"
    cost_words: ClassVar[str] = _FREE

    def take(self, value: Tensor, tokens: Tensor, frame: int | None = None) -> Tensor:
        return value

    def read(self, at: DecoderReading) -> Tensor:
        return at.entered()

    def flops(self, load: Load) -> float:
        return 2.0 * load.shape.width * load.text * load.present


@dataclass(frozen=True)
class RotaryGain(DecoderNeed):
    """Logits of queries and keys that are all ones, under decoder layer K-1's rotary embedding. Shape [T, n].

    For each text token of `TextQueryAttention` and each visual token, at positions p and q: scaling * (R_p 1) . (R_q 1)
    with R the rotation. With d rotated dimensions it is 2 scaling sum_i cos((p - q) theta_i), i = 1..d/2, and falls
    with the distance.
    """

    words: ClassVar[str] = "how rotary embedding weakens logits with distance"
    cost_words: ClassVar[str] = "O(T n d)"
    taps: ClassVar[tuple[str, ...]] = ("attention",)

    def take(self, value: Tensor, tokens: Tensor, frame: int | None = None) -> Tensor:
        return value[:, tokens]

    def read(self, at: DecoderReading) -> Tensor:
        return at.rotary_gain(at.text, at.image)

    def flops(self, load: Load) -> float:
        return 0.0  # counted with the attention that it corrects
