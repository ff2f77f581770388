"""CLIP's text tower beside a model that carries only its vision tower: what text-guided methods compare with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, CLIPModel

from vlmprune.core.errors import UserError

TOKENS = 77  # CLIP's text tower takes that many


class TextTower:
    """The text tower and the projections of the CLIP model whose vision tower a VLM uses.

    Args:
        clip: that CLIP model, for LLaVA-1.5 and LLaVA-NeXT `openai/clip-vit-large-patch14-336`.
        tokenizer: CLIP's.
        prompt_tokenizer: the VLM's, to read the instruction in its prompt.
    """

    def __init__(self, clip: Any, tokenizer: Any, prompt_tokenizer: Any) -> None:
        self.clip, self.tokenizer, self.prompt_tokenizer = clip.eval(), tokenizer, prompt_tokenizer

    @classmethod
    def from_pretrained(cls, name: str, prompt_tokenizer: Any) -> TextTower:
        """Load a CLIP model from a folder or hub id.

        Raises:
            UserError: there is no CLIP model at `name`.
        """
        try:
            return cls(CLIPModel.from_pretrained(name), AutoTokenizer.from_pretrained(name), prompt_tokenizer)
        except (OSError, ValueError) as error:
            raise UserError(f'No CLIP model could be loaded from "{name}": {str(error).splitlines()[0]}') from error

    def check(self, family: str, width: int | None) -> None:
        """Raise UserError unless a vision tower of this width (None: not a CLIP tower) can be this model's."""
        own = self.clip.config.vision_config.hidden_size
        if width != own:
            what = "no CLIP tower" if width is None else f"a vision tower of width {width}"
            raise UserError(f"This text tower belongs to a CLIP tower of width {own}, and {family} has {what}.")

    def read(self, ids: Tensor) -> str:
        """The instruction in these token ids of the prompt."""
        return self.prompt_tokenizer.decode(ids.tolist(), skip_special_tokens=True).strip()

    @torch.no_grad()
    def text(self, sentence: str, truncate: bool = False) -> Tensor:
        """[M, C] of a sentence, one row for each 77 tokens of it (the last padded with id 0), or the first row only."""
        ids = self.tokenizer(sentence, truncation=truncate, max_length=TOKENS if truncate else None).input_ids
        pieces = [ids[start : start + TOKENS] for start in range(0, len(ids), TOKENS)]
        width = len(ids) if len(pieces) == 1 else TOKENS
        padded = torch.tensor([piece + [0] * (width - len(piece)) for piece in pieces])
        mask = torch.tensor([[1] * len(piece) + [0] * (width - len(piece)) for piece in pieces])
        device = self.clip.device
        pooled = self.clip.text_model(input_ids=padded.to(device), attention_mask=mask.to(device)).pooler_output
        return self.clip.text_projection(pooled).float()

    @torch.no_grad()
    def visual(self, rows: Tensor) -> Tensor:
        """[n, C] of rows of the vision tower [n, width]."""
        normed = self.clip.vision_model.post_layernorm(rows.to(self.clip.device, self.clip.dtype))
        return self.clip.visual_projection(normed).float()
