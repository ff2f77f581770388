"""CLIP's text tower beside a model that carries only its vision tower: what text-guided methods compare with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoTokenizer, CLIPModel

from vlmprune.core.errors import UserError
from vlmprune.models.base import Adapter
from vlmprune.models.weights import first_sentence, load_whole

SAME = ("hidden_size", "num_hidden_layers", "patch_size", "image_size")  # in the configs of one vision tower
AT_ONCE = 32  # pieces of a long text, so that it takes no more memory than they do
SIGN = "patch_text_sign"  # in a CLIP's config: 1 where patches point towards text that describes them, -1 where away


@contextmanager
def _loading(name: str) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except (OSError, ValueError) as error:
        raise UserError(f'No CLIP model could be loaded from "{name}": {first_sentence(error)}') from error


def clip_config(name: str) -> Any:
    """The config of the CLIP model in a folder or of a hub id, or UserError."""
    with _loading(name):
        config = AutoConfig.from_pretrained(name)
    if config.model_type != "clip":
        raise UserError(f'"{name}" is a {config.model_type} model, not a CLIP model with a text and a vision tower.')
    return config


def check_tower(clip: Any, adapter: Adapter) -> None:
    """Raise UserError unless a model has the vision tower of a CLIP of this config, and so can use its text tower."""
    family, vision = adapter.family, getattr(adapter.config, "vision_config", None)
    if not (adapter.tower_rows and adapter.has_cls):
        raise UserError(f"A text tower has no use here: the vision tower of {family} is not CLIP's.")
    for name in SAME:
        own, theirs = getattr(clip.vision_config, name), getattr(vision, name)
        if own != theirs:
            raise UserError(
                f"This text tower belongs to another vision tower: its {name} is {own}, that of {family} {theirs}."
            )


class TextTower:
    """The text tower and the projections of the CLIP model whose vision tower a VLM uses.

    Args:
        clip: that CLIP model, for LLaVA-1.5 and LLaVA-NeXT `openai/clip-vit-large-patch14-336`.
        tokenizer: CLIP's.
        prompt_tokenizer: the VLM's (or its processor), to read the instruction in its prompt.

    Attributes:
        sign: of the cosine of a patch with a text that describes it, if the CLIP's config says it (`SIGN`).
    """

    def __init__(self, clip: Any, tokenizer: Any, prompt_tokenizer: Any) -> None:
        self.clip, self.tokenizer, self.prompt_tokenizer = clip.eval(), tokenizer, prompt_tokenizer
        self.sign: int | None = getattr(clip.config, SIGN, None)

    @classmethod
    def from_pretrained(cls, name: str, prompt_tokenizer: Any) -> TextTower:
        """Load a CLIP model from a folder or hub id, in float32: its numbers decide, and it is small.

        Raises:
            UserError: there is no CLIP model with both towers at `name`.
        """
        clip_config(name)  # into another model, transformers would put random weights
        with _loading(name):
            clip = load_whole(CLIPModel, name, name, dtype=torch.float32)
            return cls(clip, AutoTokenizer.from_pretrained(name), prompt_tokenizer)

    def check(self, adapter: Adapter) -> None:
        """Raise UserError unless a model can use this one: see `check_tower`."""
        check_tower(self.clip.config, adapter)

    def read(self, ids: Tensor) -> str:
        """The instruction in these token ids of the prompt."""
        return self.prompt_tokenizer.decode(ids.tolist(), skip_special_tokens=True).strip()

    @torch.no_grad()
    def text(self, sentence: str, truncate: bool = False) -> Tensor:
        """A sentence in CLIP's common space, float32 [M, C].

        One row for each piece of as many tokens as the tower takes (77), start and end token counted; with `truncate`
        one row for its beginning, which then has an end token.
        """
        most = self.clip.config.text_config.max_position_embeddings
        limit = {"truncation": True, "max_length": most} if truncate else {}
        ids = torch.tensor(self.tokenizer(sentence, verbose=False, **limit).input_ids, device=self.clip.device)
        pieces = ids.split(most)
        padded = nn.utils.rnn.pad_sequence(pieces, batch_first=True)  # with id 0, which the mask hides
        mask = nn.utils.rnn.pad_sequence([torch.ones_like(piece) for piece in pieces], batch_first=True)
        states = torch.cat(
            [
                self.clip.text_model(input_ids=own, attention_mask=its).last_hidden_state
                for own, its in zip(padded.split(AT_ONCE), mask.split(AT_ONCE), strict=True)
            ]
        )
        # CLIP reads a text at its end token. Only the last piece has one; the others are read at their highest id, as
        # CLIP models do whose config names no end token (`eos_token_id` 2), OpenAI's among them.
        ends = (padded == self.tokenizer.eos_token_id) & (mask == 1)
        places = torch.where(ends.any(1), ends.int().argmax(1), padded.argmax(1))
        return self.clip.text_projection(states[torch.arange(len(pieces)), places]).float()

    @torch.no_grad()
    def visual(self, rows: Tensor) -> Tensor:
        """Rows of the vision tower [n, width] in CLIP's common space, float32 [n, C]."""
        return self._projected(rows.to(self.clip.device, self.clip.dtype)).float()

    def _projected(self, rows: Tensor) -> Tensor:
        return self.clip.visual_projection(self.clip.vision_model.post_layernorm(rows))

    def gradient(self, collected: Tensor, state: Tensor, sentence: str) -> Tensor:
        """Gradient of the cosine of image and sentence (mean over its pieces), float32 [f, W].

        It is open in here only, whatever the caller has switched off, and no parameter gets one.

        Args:
            collected: [f, W] what the CLS token's heads collect in the vision tower's last layer, side by side.
            state: [f, D] the CLS token as it enters that layer.
        """
        text, layer = self.text(sentence), self.clip.vision_model.encoder.layers[-1]
        with torch.inference_mode(False), torch.enable_grad():
            text, state, leaf = (
                rows.detach().to(self.clip.device, self.clip.dtype).clone() for rows in (text, state, collected)
            )
            leaf.requires_grad_()
            row = state + layer.self_attn.out_proj(leaf)
            row = row + layer.mlp(layer.layer_norm2(row))
            cosines = nn.functional.cosine_similarity(self._projected(row)[:, None], text[None], dim=-1)
            return torch.autograd.grad(cosines.mean(1).sum(), leaf)[0].float()
