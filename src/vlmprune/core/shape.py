"""Widths and depths of a model, from which operations are counted."""

from __future__ import annotations

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
        tile: slots of each tile that the tower sees by itself, 0 if it sees the whole image at once.
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

    @property
    def info(self) -> ModelInfo:
        return ModelInfo(self.family, self.encoder_layers, self.layers, self.has_cls)


@dataclass(frozen=True)
class Load:
    """The sizes of one sample in a model, by which the cost of reading a signal is counted.

    Attributes:
        shape: the model's.
        slots: number of visual tokens that the encoder made.
        present: how many of them reach the method.
        text: number of text tokens in the prompt.
    """

    shape: Shape
    slots: int
    present: int
    text: int

    @property
    def encoder_tokens(self) -> int:
        """Tokens in the encoder: patches and CLS."""
        return self.slots * self.shape.merge + self.shape.has_cls

    @property
    def row(self) -> float:
        """Operations for the logits of one query in a decoder layer, over all tokens of the prompt."""
        return 2.0 * self.shape.q_width * (self.text + self.present)

    def pairs(self, width: int) -> float:
        """Operations for comparing all present tokens with each other, as rows of this width."""
        return 2.0 * width * self.present**2
