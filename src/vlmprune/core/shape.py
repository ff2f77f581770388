"""Widths and depths of a model: what operations are counted by."""

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
        window: encoder tokens a window, 0 without windows.
        full_layers: encoder layers with attention over the whole image.
        patch_inputs: numbers in a patch.
        merge: patches a slot.
        projector: multiplications of the projector (and of deepstack's) a slot.
        layers, width, mlp, q_width, kv_width, vocabulary: of the decoder.
        tile: slots of a picture that the tower sees by itself, 0 where it sees all of an image at once.
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
    """One sample on its way through a model, for counting what it costs to read a signal of it.

    Attributes:
        shape: of the model.
        slots: visual tokens that the encoder made.
        present: of them, those that reach the method.
        text: tokens of the prompt's text.
    """

    shape: Shape
    slots: int
    present: int
    text: int

    @property
    def encoder_tokens(self) -> int:
        """N of the encoder: patches, and CLS."""
        return self.slots * self.shape.merge + self.shape.has_cls

    @property
    def row(self) -> float:
        """Operations of one query's logits in a decoder layer, over all tokens of the prompt."""
        return 2.0 * self.shape.q_width * (self.text + self.present)

    def pairs(self, width: int) -> float:
        """Operations of comparing all present tokens with each other, as rows of this width."""
        return 2.0 * width * self.present**2
