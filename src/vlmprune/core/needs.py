"""What a signal is: a need that a method declares, which knows how to read itself and what that costs.

A need stands in one of three rooms, and reads from what the runtime shows it there:

    PromptNeed    the prompt, once images are encoded and before the LLM runs    `PromptReading`
    EncoderNeed   the vision encoder, from what was noted while it ran           `EncoderReading`
    DecoderNeed   decoder layer K-1, for a method that acts before layer K       `DecoderReading`

These hold tensors only: a need never sees a model. The signals that come with vlmprune are in `core.signals`; a paper's
own is a class beside its method.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Protocol

from torch import Tensor

from vlmprune.core.shape import Load
from vlmprune.core.view import Aligned, TowerRows


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


class Attention(Protocol):
    """One call of an encoder layer's attention function, after rotary embedding and normalisation.

    Attributes:
        query, key, value: [B, H, R, d], [B, Hkv, S, d] and [B, Hkv, S, dv].
        scaling: factor on the logits.
        mask: [B, 1 or H, R, S] which keys each query sees, or None where it sees all.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    scaling: float
    mask: Tensor | None


class Tower(Protocol):
    """What a need may know of the vision tower before it reads it."""

    @property
    def has_cls(self) -> bool: ...

    def layer(self, layer: EncoderLayer) -> int:
        """The 0-based layer of this tower."""


class PromptReading(Protocol):
    """One image in a prompt, its tokens those that are still there."""

    @property
    def features(self) -> Tensor:
        """[n, D] projected features, or what an earlier stage merged of them."""

    def text(self, after_image: bool = False) -> Tensor:
        """[T, D] float32 embeddings of the prompt's text tokens, or of those behind the image."""

    def encoder(self, need: EncoderNeed) -> Any:
        """What another need read of the encoder; it must be among the `encoder` of the one that asks."""

    def aligned(self, rows: TowerRows, truncate: bool) -> Aligned:
        """Tower rows [n, C] and the instruction in one space: see `core.signals.Alignment`."""


class EncoderReading(Protocol):
    """One image (or video, or tile) in the vision encoder, as rows of slots.

    Of patches that make one slot there is the mean; a slot that no patch stands behind has NaN. `layer` counts from 0,
    and `taps` must name what is read.
    """

    @property
    def features(self) -> Tensor:
        """[count, D] projected features."""

    def rows(self) -> TowerRows:
        """What the projector reads, [count, C]; the projected features where there is no such row per slot."""

    def pixels(self, normalized: bool) -> Tensor:
        """[count, P] the encoder's input: see `core.signals.Pixels`."""

    def states(self, layer: EncoderLayer) -> TowerRows:
        """[count, width] the output of a layer. Tap: "states"."""

    def queries(self, layer: EncoderLayer, joined: bool = False) -> TowerRows:
        """[count, head_dim] mean over heads, or with `joined` side by side. Tap: "attention"."""

    def keys(self, layer: EncoderLayer, joined: bool = False) -> TowerRows:
        """[count, head_dim] mean over (key-value) heads, or side by side. Tap: "attention"."""

    def values(self, layer: EncoderLayer, joined: bool = False) -> TowerRows:
        """[count, head_dim] likewise. Tap: "attention"."""

    def cls_attention(self, layer: EncoderLayer, joined: bool = False) -> Tensor:
        """[count] the first token's row (CLS), mean over heads, or with all heads taken as one. Tap: "attention"."""

    def received_attention(self, layer: EncoderLayer, joined: bool = False) -> Tensor:
        """[count] mean over heads and queries, CLS included; or all heads as one. Tap: "attention"."""

    def statistic(self, layer: EncoderLayer, of: Callable[[Attention], Tensor]) -> TowerRows:
        """Any other: `of` a call gives values [B, tokens, ...] of its tokens. Tap: "attention"."""

    def project(self, rows: Tensor) -> Tensor:
        """Tower rows [m, C] to LLM embeddings [m, D]."""


class DecoderReading(Protocol):
    """One image at decoder layer K-1, for a method that acts before layer K.

    `image` [n], `text` [T] (the tokens behind the image, up to the end of the prompt) and `last` [1] (its last token)
    name tokens; all else is read at tokens so named. Rows come as float32.
    """

    image: Tensor
    text: Tensor
    last: Tensor

    def attention(self, queries: Tensor, heads: str = "mean", ahead: bool = False) -> Tensor:
        """[R, S] post-softmax rows of R queries over all that they see; index the columns by tokens.

        `heads`: "mean", "max", or "all" for [H, R, S]. Tap: "attention", or with `ahead` "ahead": layer K's, before it
        has run.
        """

    def keys(self, tokens: Tensor) -> Tensor:
        """[R, C] keys after rotary embedding, KV heads side by side. Tap: "attention"."""

    def values(self, tokens: Tensor) -> Tensor:
        """[R, C] values, KV heads side by side. Tap: "attention"."""

    def rotary_gain(self, queries: Tensor, keys: Tensor) -> Tensor:
        """[R, S] what rotary embedding makes of logits of ones: see `core.signals.RotaryGain`. Tap: "attention"."""

    def layer_input(self, tokens: Tensor) -> Tensor:
        """[R, D]. Tap: "input"."""

    def attention_output(self, tokens: Tensor) -> Tensor:
        """[R, D] what the attention block gives out, before any norm on its output. Tap: "attention_output"."""

    def mlp_input(self, tokens: Tensor) -> Tensor:
        """[R, D]. Tap: "mlp_input"."""

    def mlp_output(self, tokens: Tensor) -> Tensor:
        """[R, D]. Tap: "mlp_output"."""

    def layer_output(self, tokens: Tensor, norm: str | None = None) -> Tensor:
        """[R, D] as it would enter layer K, or through the "final" or the "next" layer's norm. Tap: "output"."""

    def entered(self) -> Tensor:
        """[N, D] embeddings with which the image's tokens entered the LLM, whatever became of them since."""


@dataclass(frozen=True)
class Need:
    """Base of all needs. Derive from `PromptNeed`, `EncoderNeed` or `DecoderNeed`.

    Attributes:
        words: what it is, for the page of methods and for people.
        cost_words: what the runtime spends on it.
        of_patches: whether slots that no patch stands behind (image_newline, CLS) have no such signal.
    """

    words: ClassVar[str] = ""
    cost_words: ClassVar[str] = "not stated"
    of_patches: ClassVar[bool] = False

    def take(self, value: Any, tokens: Tensor, frame: int | None = None) -> Any:
        """The signal of only these tokens; all of them are of one frame (or tile) where `frame` is given."""
        if isinstance(value, TowerRows):
            cls = value.cls
            return TowerRows(value.rows[tokens], cls if cls is None or frame is None else cls[frame : frame + 1])
        return value[tokens]

    def flops(self, load: Load) -> float | None:
        """Operations that reading it costs; None where nobody has counted them, which tables show as a dash."""
        return None


@dataclass(frozen=True)
class PromptNeed(Need):
    """Read from the prompt, before the LLM runs; a method inside the LLM may declare it too.

    Attributes:
        compares_text: whether it is made of the instruction through a text tower, where `prune` was given one.
    """

    compares_text: ClassVar[bool] = False

    @property
    def encoder(self) -> tuple[EncoderNeed, ...]:
        """What it is made of that must be read from the encoder."""
        return ()

    def read(self, at: PromptReading) -> Any:
        raise NotImplementedError


@dataclass(frozen=True)
class EncoderNeed(Need):
    """Read from the vision encoder, one row per slot: [count, ...] or `TowerRows`.

    Attributes:
        taps: what must be noted of `layers` while the tower runs: "attention", "states", or "rows" (what the projector
            reads).
        required: whether a model is refused whose encoder cannot be told apart by slots.
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
        """What it comes to on this tower, its layer as a number: what is equal then is read once."""
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
        taps: what must be noted of the layer while it runs: "attention", "ahead" (layer K's attention, before it runs),
            "input", "attention_output", "mlp_input", "mlp_output", "output".
    """

    @property
    def taps(self) -> tuple[str, ...]:
        return ()

    def read(self, at: DecoderReading) -> Any:
        raise NotImplementedError
