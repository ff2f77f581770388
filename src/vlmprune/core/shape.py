"""Widths and depths of a model, from which operations are counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vlmprune.core.view import ModelInfo


@dataclass(frozen=True)
class Shape:
    """Widths and depths of a model.

    Attributes:
        family: `config.model_type`.
        encoder_layers, encoder_width, encoder_mlp: of the vision tower.
        encoder_gated: whether its MLP has three matrices.
        encoder_heads: its attention heads.
        has_cls: whether it has a CLS token.
        window: encoder tokens per window, 0 without windows.
        full_layers: encoder layers with attention over the whole image.
        patch_inputs: numbers in a patch.
        merge: patches per slot.
        projector: multiplications of the projector (and of deepstack's) per slot.
        layers, width, mlp, q_width, kv_width, vocabulary: of the decoder.
        tile: slots of a picture that the tower sees by itself, 0 where it sees all of an image at once.
        canvases: rows and columns of tiles that a picture may be cut into behind a view of the whole picture; none
            where the slots alone tell what the tower saw.
        most: tiles of features beyond which these are shrunk, 0 for never.
        cls_slots: whether a frame of a video keeps its CLS token as a slot.
        gated_query: whether attention's output is gated, by as many numbers as there are queries.
        sparse: decoder layers whose MLP is a mixture of experts.
        sparse_mlp: multiplications of such a layer's router, chosen experts and shared expert a token; in Llama 4 of
            all experts, as transformers lets each compute every token.
        active: width of the MLP that a token passes there: of the chosen experts and the shared one together.
        recurrent: decoder layers with linear attention (the gated delta rule).
        recurrent_weights: multiplications of such a layer's projections and convolution a token.
        recurrent_heads: heads, and the width of their keys and of their values.
        all_logits: whether a forward computes the logits of all its tokens, not of the last alone.
        joins: pictures of a video that the tower takes together, 0 where it takes every one by itself.
        chunk: frames of a video that share their slots and see each other in the tower; 0 where each has its own.
        pooled: patches of a video's frame behind each of its slots, averaged before the projector; 0 where a video is
            projected as pictures are.
        shrunk_layers: encoder layers behind a merger inside the encoder, which see a token for four patches.
        midway: multiplications of that merger per patch.
        latent: multiplications of queries, keys and values per token where the decoder makes them from latents.
        value_width: of all heads' values together, where that is not `q_width`.
        apart: of each decoder layer, where they differ: multiplications of its attention's projections and of all else
            per token, and the width of its queries; `q_width` and `kv_width` are then the largest.
        once: multiplications per token that enters the decoder, before its layers.
        last_alone: decoder layers at the end that compute the last token of a prompt only.
        opaque: whether counts of tokens do not tell what the tower computes, which sees padding, or crops that overlap;
            a measurement that watches it knows.
        projects_padding: whether the projector then takes that padding, too.
    """

    family: str
    encoder_layers: int
    encoder_width: int
    encoder_mlp: int
    encoder_gated: bool
    encoder_heads: int
    has_cls: bool
    window: int
    full_layers: int
    patch_inputs: int
    merge: int
    projector: int
    layers: int
    width: int
    mlp: int
    q_width: int
    kv_width: int
    vocabulary: int
    tile: int = 0
    canvases: Sequence[Sequence[int]] = ()
    most: int = 0
    cls_slots: bool = False
    gated_query: bool = False
    sparse: Sequence[int] = ()
    sparse_mlp: int = 0
    active: int = 0
    recurrent: Sequence[int] = ()
    recurrent_weights: int = 0
    recurrent_heads: Sequence[int] = (0, 0, 0)
    joins: int = 0
    chunk: int = 0
    pooled: int = 0
    shrunk_layers: int = 0
    midway: int = 0
    latent: int = 0
    value_width: int = 0
    apart: Sequence[Sequence[int]] = ()
    once: int = 0
    last_alone: int = 0
    opaque: bool = False
    projects_padding: bool = False
    all_logits: bool = False

    @property
    def info(self) -> ModelInfo:
        return ModelInfo(self.family, self.encoder_layers, self.layers, self.has_cls)

    @property
    def read_width(self) -> int:
        """What attention reads per query and head, all heads together: of values."""
        return self.value_width or self.q_width

    @property
    def projections(self) -> int:
        """Multiplications of queries, keys and values of a token in a decoder layer with attention."""
        return self.latent or self.width * (self.q_width + 2 * self.kv_width)


@dataclass(frozen=True)
class Load:
    """The sizes of one sample in a model, by which the cost of reading a signal is counted.

    Attributes:
        shape: the model's.
        slots: number of visual tokens that the encoder made.
        present: how many of them reach the method.
        text: number of text tokens in the prompt.
        seen: tokens in the encoder where slots do not tell them (`Shape.opaque`).
    """

    shape: Shape
    slots: int
    present: int
    text: int
    seen: int = 0

    @property
    def encoder_tokens(self) -> int:
        """Tokens in the encoder: patches and CLS."""
        return self.seen or self.slots * self.shape.merge + self.shape.has_cls

    @property
    def row(self) -> float:
        """Operations for the logits of one query in a decoder layer, over all tokens of the prompt."""
        return 2.0 * self.shape.q_width * (self.text + self.present)

    def pairs(self, width: int) -> float:
        """Operations for comparing all present tokens with each other, as rows of this width."""
        return 2.0 * width * self.present**2
