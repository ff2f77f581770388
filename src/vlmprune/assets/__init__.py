"""The embedded models: small, trained vision-language models of real transformers classes, in the package."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from vlmprune.core.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, ProcessorMixin

_FOLDER = Path(__file__).parent
_NAMES = ("llava", "qwen2_5_vl")
CLIP = "clip"  # subfolder of a model whose vision tower came with a text tower


def embedded_names() -> tuple[str, ...]:
    """The names of the embedded models."""
    return _NAMES


def embedded_path(name: str) -> Path:
    """The Hugging Face folder of an embedded model.

    Raises:
        UserError: no embedded model has this name, or its files are missing.
    """
    if name not in _NAMES:
        raise UserError(f'No embedded model is named "{name}"; there are: {", ".join(_NAMES)}.')
    folder = _FOLDER / name
    if not (folder / "config.json").is_file():
        raise UserError(f'The files of the embedded model "{name}" are missing from {folder}.')
    return folder


def load_embedded(name: str) -> tuple[PreTrainedModel, ProcessorMixin]:
    """An embedded model, float32 in evaluation mode on the CPU, and its processor.

    Raises:
        UserError: see `embedded_path`.
    """
    folder = embedded_path(name)
    import torch
    from transformers import AutoModelForImageTextToText

    from vlmprune.models.processors import load_processor

    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    return model.eval(), load_processor(folder)
