"""What an adapter tells the runtime about a model family."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vlmprune.core.view import Grid, ModelInfo, TowerRows


class Adapter:
    """Where things are in one family's model, how its patches become visual slots, and how it counts positions.

    A subclass overrides what differs; the defaults describe transformers' usual layout (`model.model.language_model`).
    """

    family: ClassVar[str]
    feature_functions: ClassVar[dict[str, str]] = {"image": "get_image_features"}

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.inner: Any = model.model
        self.config: Any = model.config

    @property
    def text_model(self) -> Any:
        return self.inner.language_model

    @property
    def decoder_layers(self) -> Sequence[nn.Module]:
        return self.text_model.layers

    @property
    def encoder_layers(self) -> Sequence[nn.Module]:
        raise NotImplementedError

    @property
    def encoder_attentions(self) -> Sequence[nn.Module]:
        """Modules that call the attention function, one an encoder layer."""
        return [attention_of(layer) for layer in self.encoder_layers]

    @property
    def decoder_attentions(self) -> Sequence[nn.Module]:
        return [attention_of(layer) for layer in self.decoder_layers]

    @property
    def placeholder_ids(self) -> dict[str, int]:
        """Token id of a visual slot, by modality."""
        return {"image": self.config.image_token_id}

    @property
    def has_cls(self) -> bool:
        return False

    @property
    def used_layer(self) -> int:
        """Encoder layer (0-based) whose output the projector reads."""
        return len(self.encoder_layers) - 1

    @property
    def full_layers(self) -> tuple[int, ...] | None:
        """Encoder layers whose attention spans the whole image, or None when all do."""
        return None

    @property
    def info(self) -> ModelInfo:
        return ModelInfo(self.family, len(self.encoder_layers), len(self.decoder_layers), self.has_cls)

    def grids(self, modality: str, call: dict[str, Any]) -> list[Grid | None]:
        """Slot grid of each image (None where the slots form none) of a `get_*_features` call with these arguments."""
        raise NotImplementedError

    def rows(self, modality: str, call: dict[str, Any], chunks: Sequence[Tensor]) -> list[TowerRows]:
        """A statistic of encoder tokens as rows of slots, one entry an image.

        Args:
            chunks: what each attention call of the layer saw, in order: [batch, tokens, ...].
        """
        raise NotImplementedError

    def tower_rows_exist(self) -> bool:
        """Whether there is one row per slot before the projector."""
        return True

    def project(self, rows: Tensor) -> Tensor:
        """Tower rows [m, C] to LLM embeddings [m, D]."""
        return rows

    def resize(self, modality: str, call: dict[str, Any], grids: Sequence[Grid]) -> dict[str, Any]:
        """The arguments of `get_*_features` for the same images resized to these slot grids."""
        raise NotImplementedError

    def rotary(self, hidden: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin of position ids [B, L], or [axes, B, L] for M-RoPE."""
        return self.text_model.rotary_emb(hidden, positions)


def attention_of(layer: Any) -> nn.Module:
    return layer.self_attn


def split_rows(values: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    return list(torch.split(values, list(sizes)))
