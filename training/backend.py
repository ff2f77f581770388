"""What the training loop needs from a model family."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from training.cuts import Kept, Late


@dataclass(frozen=True)
class TextBatch:
    """Packed questions, one row an image: "question ASSISTANT: answer end" segments one after another.

    ids: int64 [B, T]; segment: int64 [B, T], the number of a token's question, -1 for padding;
    offset: int64 [B, T], a token's place in its own segment (its position id is that of the first token after the
    image plus offset); target: int64 [B, T], the next token where it is part of an answer, else -100;
    hint: int64 [B, T, 7], at a word that names one object of the scene, its shape, colour, size (numbers in the
    world's lists), row and column of its centre among the slots; at an option, the number of its marker
    and whether it is the answer; else -100.
    """

    ids: Tensor
    segment: Tensor
    offset: Tensor
    target: Tensor
    hint: Tensor


@dataclass(frozen=True)
class Forward:
    """features: [pictures, slots, hidden], the projector's output, row-major; logits: [B, T, words];
    cls: [pictures, d] or None; placed: states of the visual tokens that should know their row and column, in the
    shape of `features` where a row has one picture;
    early: [B, T, hidden], the text's states in the middle of the decoder, through the final norm."""

    features: Tensor
    logits: Tensor
    cls: Tensor | None
    placed: Tensor
    early: Tensor


class Backend(Protocol):
    """One model family. Token ids: the `specials` in order, then `vocabulary()` in order."""

    name: str
    sizes: tuple[tuple[int, int], ...]  # (width, height) of training images; a step draws one of them
    specials: tuple[str, ...]  # the first is the padding token
    unknown: str
    assistant: str  # special token between question and answer
    end: str  # special token after an answer
    cls_width: int | None  # width of Forward.cls, None when the family has no CLS token
    contrast_width: int  # width of what `contrast` pools
    token_names: dict[str, str]  # the tokenizer's named special tokens besides padding, unknown and end
    layers: int  # of the decoder
    places_features: bool  # the projector's output can know its place (the tower has absolute positions)

    def build(self, words: int) -> nn.Module:
        """The untrained Hugging Face model, float32, for `words` token ids."""

    def hidden(self, model: nn.Module) -> int:
        """Width of the projector's output."""

    def output_map(self, model: nn.Module) -> nn.Module:
        """The projector's last linear map."""

    def tower(self, model: nn.Module) -> nn.Module:
        """The vision tower without its projector."""

    def embedding(self, model: nn.Module) -> Tensor:
        """The tied word embedding [words, hidden]."""

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of visual slots for an image of (width, height)."""

    def constants(self, size: tuple[int, int], device: torch.device) -> Any:
        """What depends on the size alone. Sizes whose constants are tensors of the same shapes share one graph."""

    def pixels(self, images: np.ndarray) -> Tensor:
        """uint8 [B, H, W, 3] to whatever `features` and `forward` take, the first axis or axes over the batch."""

    def features(self, model: nn.Module, pixels: Tensor, constants: Any) -> tuple[Tensor, Tensor | None]:
        """The projector's output [B, slots, hidden] and the CLS output."""

    def forward(
        self,
        model: nn.Module,
        pixels: Tensor,
        constants: Any,
        ids: Tensor,
        segment: Tensor,
        offset: Tensor,
        kept: Kept | None = None,
        late: Late | None = None,
    ) -> Forward:
        """Images and packed questions; equal to the Hugging Face forward of each question alone.

        A row of B has as many pictures as there are for it, side by side in `pixels`. `kept` are the visual tokens that
        the decoder gets of each picture, `late` those that leave it on the way (where a row has one picture).
        """

    def forward_text(self, model: nn.Module, ids: Tensor, segment: Tensor, offset: Tensor) -> Tensor:
        """Logits [B, T, words] of packed questions without an image."""

    def contrasted(self, model: nn.Module) -> tuple[nn.Module, ...]:
        """The parts of the tower that contrastive training changes."""

    def contrast(
        self, model: nn.Module, before: nn.Module, pixels: Tensor, constants: Any
    ) -> tuple[list[Tensor], Tensor | None, Tensor]:
        """What the layers that methods read collect, each [B, contrast_width]; the patches that methods compare with
        text, [B, patches, contrast_width]; and how far the patches have moved from where the tower `before` has them
        (relative mean square)."""

    def processor(self, tokenizer: Any) -> Any:
        """The Hugging Face processor, chat template included."""

    def export(self, model: nn.Module, tokenizer: Any, folder: Path) -> None:
        """Write the Hugging Face folder: float16 safetensors, configuration, processor, chat template."""


def get_backend(name: str) -> Backend:
    """The backend of an embedded model's name."""
    if name == "llava":
        from training.backend_llava import LlavaBackend

        return LlavaBackend()
    if name == "qwen2_5_vl":
        from training.backend_qwen import QwenBackend

        return QwenBackend()
    raise SystemExit(f'No model named "{name}": use llava or qwen2_5_vl.')


def matrices(model: nn.Module) -> list[nn.Parameter]:
    """The matrices that Muon trains: linear maps of the transformer layers and of the projector."""
    parts = ("layers.", "blocks.", "projector", "merger")
    return [
        parameter
        for name, parameter in model.named_parameters()
        if parameter.ndim == 2 and name.endswith("weight") and any(part in name for part in parts)
    ]


def parameter_count(model: nn.Module) -> int:
    """Number of parameters, tied ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


def autocast(device: torch.device, on: bool) -> torch.autocast:
    """bfloat16 autocast."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=on)
