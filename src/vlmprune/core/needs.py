"""Needs: what a method declares in order to get a signal. A need knows how to read its signal and what that costs.

There are three kinds. Each reads from an object that the runtime hands it:

    PromptNeed    the prompt, once images are encoded and before the LLM runs    `PromptReading`
    EncoderNeed   the vision encoder, from what was recorded while it ran        `EncoderReading`
    DecoderNeed   decoder layer K-1, for a method that acts before layer K       `DecoderReading`

These objects hold tensors only: a need never sees a model. The signals that come with vlmprune are in `core.signals`.
A signal that only one paper uses is a class in the file of its method.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Protocol

from torch import Tensor

from vlmprune.core.shape import Load
from vlmprune.core.view import Aligned, TowerRows


@dataclass(frozen=True)
class Depth:
    """Encoder layer `number`, counted from 1 as papers do, of a tower of `of` layers.

    On another tower it is the layer at the same share of the depth: 9 of 24 is the second of five. On a tower with
    window attention it is the nearest layer with full attention (a mean over a window compares only its own tokens).
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


class Attention(Protocol):
    """One call of an encoder layer's attention function, after rotary embedding and normalisation.

    Attributes:
        query, key, value: [B, H, R, d], [B, Hkv, S, d] and [B, Hkv, S, dv].
        scaling: factor on the logits.
        mask: [B, 1 or H, R, S] which keys each query sees, or None if it sees all of them.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    scaling: float
    mask: Tensor | None


class Tower(Protocol):
    """What a need may ask about the vision tower before anything is read from it."""

    @property
    def has_cls(self) -> bool: ...

    def layer(self, layer: EncoderLayer) -> int:
        """The 0-based layer of this tower."""


class PromptReading(Protocol):
    """One image in a prompt, with those of its tokens that are still present."""

    @property
    def features(self) -> Tensor:
        """[n, D] projected features, or the tokens that an earlier stage merged them into."""

    def text(self, after_image: bool = False) -> Tensor:
        """[T, D] float32 embeddings of the prompt's text tokens, or only of those after the image."""

    def words(self, pick: Callable[[str], Sequence[str]]) -> Tensor | None:
        """[m, D] float32 rows of the LLM's embedding table for the words that `pick` takes from the question.

        None if `prune` was given no tokenizer.
        """

    def encoder(self, need: EncoderNeed) -> Any:
        """What another need read from the encoder. The need that asks must list it in its own `encoder`."""

    def aligned(self, rows: TowerRows, truncate: bool) -> Aligned:
        """Tower rows [n, C] and the instruction in one space: see `core.signals.Alignment`."""

    def clip_gradient(self, collected: Tensor, state: Tensor) -> Tensor | None:
        """[f, W] gradient of the cosine of CLIP's image and instruction by `collected`; None without a text tower.

        Args:
            collected: [f, W] what the CLS token's heads collect in the tower's last layer, side by side.
            state: [f, D] the CLS token as it enters that layer.
        """


class EncoderReading(Protocol):
    """One image (or video, or tile) in the vision encoder, with one row per slot.

    If several patches make one slot, its row is their mean; the row of a slot without a patch is NaN. `layer` counts
    from 0. A need must name in its `taps` what it reads.
    """

    @property
    def features(self) -> Tensor:
        """[count, D] projected features."""

    def rows(self) -> TowerRows:
        """[count, C] what the projector reads; the projected features if the projector reads no such row per slot."""

    def pixels(self, normalized: bool) -> Tensor:
        """[count, P] the encoder's input: see `core.signals.Pixels`."""

    def states(self, layer: EncoderLayer) -> TowerRows:
        """[count, width] the output of a layer. Tap: "states"."""

    def queries(self, layer: EncoderLayer, joined: bool = False) -> TowerRows:
        """[count, head_dim] mean over heads, or with `joined` the heads side by side. Tap: "attention"."""

    def keys(self, layer: EncoderLayer, joined: bool = False) -> TowerRows:
        """[count, head_dim] mean over (key-value) heads, or side by side. Tap: "attention"."""

    def values(self, layer: EncoderLayer, joined: bool = False) -> TowerRows:
        """[count, head_dim] mean over (key-value) heads, or side by side. Tap: "attention"."""

    def cls_attention(self, layer: EncoderLayer, joined: bool = False, heads: str = "mean") -> Tensor:
        """[count] row of the first token (CLS), "mean" or "sum" over heads, or all heads treated as one.

        Tap: "attention".
        """

    def received_attention(self, layer: EncoderLayer, joined: bool = False, heads: str = "mean") -> Tensor:
        """[count] mean over queries, CLS included, "mean" or "sum" over heads; or all heads treated as one.

        Tap: "attention".
        """

    def statistic(self, layer: EncoderLayer, of: Callable[[Attention], Tensor]) -> TowerRows:
        """Any other statistic: `of` turns a call into [B, tokens, ...], a row for each token. Tap: "attention"."""

    def project(self, rows: Tensor) -> Tensor:
        """Tower rows [m, C] to LLM embeddings [m, D]."""


class DecoderReading(Protocol):
    """One image at decoder layer K-1, for a method that acts before layer K.

    `image` [n], `text` [T] (the tokens after the image, up to the end of the prompt) and `last` [1] (the prompt's last
    token) are indices of tokens. Everything else is read for such indices, as float32.
    """

    image: Tensor
    text: Tensor
    last: Tensor

    def attention(self, queries: Tensor, heads: str = "mean", ahead: bool = False) -> Tensor:
        """[R, S] post-softmax rows of R queries over all tokens that they see; index the columns by token.

        `heads`: "mean", "max", or "all" for [H, R, S]. Tap: "attention". With `ahead` the rows are those of layer K,
        computed before it runs; their tap is "ahead".
        """

    def keys(self, tokens: Tensor, joined: bool = True, ahead: bool = False) -> Tensor:
        """[R, C] keys after rotary embedding, KV heads side by side, or their mean [R, head_dim]. Tap: "attention".

        With `ahead` they are the keys of layer K, computed before it runs; their tap is "ahead".
        """

    def values(self, tokens: Tensor) -> Tensor:
        """[R, C] values, KV heads side by side. Tap: "attention"."""

    def rotary_gain(self, queries: Tensor, keys: Tensor) -> Tensor:
        """[R, S] logits of all-ones queries and keys: see `core.signals.RotaryGain`. Tap: "attention"."""

    def layer_input(self, tokens: Tensor) -> Tensor:
        """[R, D]. Tap: "input"."""

    def attention_output(self, tokens: Tensor) -> Tensor:
        """[R, D] output of the attention block, before any norm on it. Tap: "attention_output"."""

    def mlp_input(self, tokens: Tensor) -> Tensor:
        """[R, D]. Tap: "mlp_input"."""

    def mlp_output(self, tokens: Tensor) -> Tensor:
        """[R, D]. Tap: "mlp_output"."""

    def layer_output(self, tokens: Tensor, norm: str | None = None) -> Tensor:
        """[R, D] as it would enter layer K, or through the "final" or the "next" layer's norm. Tap: "output"."""

    def own_output(self, tokens: Tensor) -> Tensor:
        """[R, D] as the layer returned it, before the model adds anything (deepstack). Tap: "own_output"."""

    def entered(self) -> Tensor:
        """[N, D] embeddings with which the image's tokens entered the LLM, including those dropped since."""


@dataclass(frozen=True)
class Need:
    """Base of all needs. Derive from `PromptNeed`, `EncoderNeed` or `DecoderNeed`.

    Attributes:
        words: the signal's name in plain words, as tables show it.
        cost_words: what it costs to read, in words.
        of_patches: whether slots without a patch (image_newline, CLS) lack this signal.
        of_text: whether it depends on the prompt's text, so that another question may keep other tokens.
    """

    words: ClassVar[str] = ""
    cost_words: ClassVar[str] = "not stated"
    of_patches: ClassVar[bool] = False
    of_text: ClassVar[bool] = False

    def take(self, value: Any, tokens: Tensor, frame: int | None = None) -> Any:
        """The signal of these tokens only. If `frame` is given, they all belong to that frame (or tile)."""
        if isinstance(value, TowerRows):
            cls = value.cls
            return TowerRows(value.rows[tokens], cls if cls is None or frame is None else cls[frame : frame + 1])
        return value[tokens]

    def flops(self, load: Load) -> float | None:
        """Operations that it takes to read; None if they have not been counted (tables then show a dash)."""
        return None


@dataclass(frozen=True)
class PromptNeed(Need):
    """Read from the prompt, before the LLM runs; a method inside the LLM may declare it too.

    Attributes:
        compares_text: whether it reads the instruction through the text tower, if `prune` was given one.
        reads_words: whether it reads the question's words through the tokenizer, if `prune` was given one.
    """

    compares_text: ClassVar[bool] = False
    reads_words: ClassVar[bool] = False

    @property
    def encoder(self) -> tuple[EncoderNeed, ...]:
        """The needs of the encoder that it is computed from."""
        return ()

    def read(self, at: PromptReading) -> Any:
        raise NotImplementedError


@dataclass(frozen=True)
class EncoderNeed(Need):
    """Read from the vision encoder, one row per slot: [count, ...] or `TowerRows`.

    Attributes:
        taps: what the runtime must record at `layers` while the tower runs: "attention", "states", or "rows" (what the
            projector reads).
        required: whether a model is refused if the tokens of its encoder cannot be mapped to slots.
    """

    of_patches: ClassVar[bool] = True
    required: ClassVar[bool] = True

    @property
    def taps(self) -> tuple[str, ...]:
        return ()

    @property
    def layers(self) -> tuple[EncoderLayer, ...]:
        """The encoder layers that it reads: by default its field `layer`, if it has one."""
        return tuple(getattr(self, field.name) for field in fields(self) if field.name == "layer")

    def resolved(self, tower: Tower) -> EncoderNeed:
        """This need on this tower, with its layer as a number, so that equal needs are read only once."""
        if not any(field.name == "layer" for field in fields(self)):
            return self
        named: Any = {"layer": tower.layer(self.layers[0])}
        return replace(self, **named)

    def read(self, at: EncoderReading) -> Any:
        raise NotImplementedError


@dataclass(frozen=True)
class DecoderNeed(Need):
    """Read from decoder layer K-1, for a method that acts before layer K.

    Attributes:
        taps: what the runtime must record of the layer while it runs: "attention", "ahead" (layer K's attention, before
            that layer runs), "input", "attention_output", "mlp_input", "mlp_output", "own_output", "output".
    """

    @property
    def taps(self) -> tuple[str, ...]:
        return ()

    def read(self, at: DecoderReading) -> Any:
        raise NotImplementedError
