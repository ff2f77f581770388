"""The tiny LLaVA-1.5: a CLIP tower with a CLS token, a two-layer projector, a Llama decoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from training.backend import Forward
from training.cuts import Kept, Late
from training.decoder import decode, rotary

SIDE, PATCH = 112, 8
GRID = SIDE // PATCH
HIDDEN = 128
DECODER_LAYERS = 8
NAMING_LAYER = 2  # the decoder layer after which words that name an object should know it
CHAT_TEMPLATE = (
    "{{ '<s>' }}"
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{{ 'ASSISTANT: ' }}{% else %}{{ 'USER: ' }}{% endif %}"
    "{% if message['content'] is string %}{{ message['content'] }} "
    "{% else %}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image> ' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }} {% endfor %}"
    "{% endif %}"
    "{% if message['role'] == 'assistant' %}{{ '</s>' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


class LlavaBackend:
    """See `training.backend.Backend`."""

    name = "llava"
    sizes = ((SIDE, SIDE),)
    specials = ("<pad>", "<unk>", "<s>", "</s>", "<image>", "USER:", "ASSISTANT:")
    unknown = "<unk>"
    assistant = "ASSISTANT:"
    end = "</s>"
    cls_width: int | None = HIDDEN
    token_names = {"bos_token": "<s>", "image_token": "<image>"}
    contrast_width = HIDDEN
    layers = DECODER_LAYERS
    places_features = True
    prefix_words = ("<s>", "USER:")

    def build(self, words: int) -> LlavaForConditionalGeneration:
        ids = {word: k for k, word in enumerate(self.specials)}
        config = LlavaConfig(
            vision_config=CLIPVisionConfig(
                hidden_size=HIDDEN,
                intermediate_size=512,
                num_hidden_layers=5,
                num_attention_heads=2,
                image_size=SIDE,
                patch_size=PATCH,
                projection_dim=HIDDEN,
            ),
            text_config=LlamaConfig(
                vocab_size=words,
                hidden_size=HIDDEN,
                intermediate_size=344,
                num_hidden_layers=DECODER_LAYERS,
                num_attention_heads=4,
                num_key_value_heads=4,
                max_position_embeddings=2048,
                tie_word_embeddings=True,
                pad_token_id=ids["<pad>"],
                bos_token_id=ids["<s>"],
                eos_token_id=ids["</s>"],
            ),
            image_token_index=ids["<image>"],
            vision_feature_layer=-2,
            vision_feature_select_strategy="default",
            image_seq_length=GRID * GRID,
            tie_word_embeddings=True,
        )
        model = LlavaForConditionalGeneration(config).float()
        generation = model.generation_config
        generation.bos_token_id, generation.eos_token_id = ids["<s>"], ids["</s>"]
        generation.pad_token_id = ids["<pad>"]
        with torch.no_grad():
            table = _tower(model).embeddings.position_embedding.weight
            table[1:] = 0.2 * _sines(GRID, HIDDEN)
        return model

    def hidden(self, model: nn.Module) -> int:
        return HIDDEN

    def output_map(self, model: nn.Module) -> nn.Module:
        return model.model.multi_modal_projector.linear_2

    def tower(self, model: nn.Module) -> nn.Module:
        return _tower(model)

    def embedding(self, model: nn.Module) -> Tensor:
        return model.model.language_model.embed_tokens.weight

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        return GRID, GRID

    def constants(self, size: tuple[int, int], device: torch.device) -> None:
        return None

    def pixels(self, images: np.ndarray) -> Tensor:
        scaled = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
        return (scaled - 0.5) / 0.5

    def features(self, model: nn.Module, pixels: Tensor, constants: None) -> tuple[Tensor, Tensor]:
        tower, projector = _tower(model), model.model.multi_modal_projector
        patches, cls = _encode(tower, pixels)
        hidden = functional.gelu(projector.linear_1(patches))
        return projector.linear_2(hidden), cls

    def forward(
        self,
        model: nn.Module,
        pixels: Tensor,
        constants: None,
        ids: Tensor,
        segment: Tensor,
        offset: Tensor,
        kept: Kept | None = None,
        late: Late | None = None,
    ) -> Forward:
        features, cls = self.features(model, pixels, constants)
        kept = kept.of_rows(len(ids), features.shape[1]) if kept else None
        logits, early = self._read(model, features.reshape(len(ids), -1, HIDDEN), ids, segment, offset, kept, late)
        return Forward(features, logits, cls, features, early)

    def forward_text(self, model: nn.Module, ids: Tensor, segment: Tensor, offset: Tensor) -> Tensor:
        empty = torch.zeros(ids.shape[0], 0, HIDDEN, device=ids.device)
        return self._read(model, empty, ids, segment, offset)[0]

    def _read(
        self,
        model: nn.Module,
        features: Tensor,
        ids: Tensor,
        segment: Tensor,
        offset: Tensor,
        kept: Kept | None = None,
        late: Late | None = None,
    ) -> tuple[Tensor, Tensor]:
        text_model = model.model.language_model
        config = model.config.text_config
        table = text_model.embed_tokens.weight
        start = torch.tensor([self.specials.index(word) for word in self.prefix_words], device=ids.device)
        first = table[start].expand(ids.shape[0], -1, -1)
        slots = torch.arange(features.shape[1], device=ids.device).expand(ids.shape[0], -1)
        after = torch.full_like(offset[:, :1], len(start) + features.shape[1])  # the position of the text's first token
        if kept is not None:
            features = features.gather(1, kept.index[..., None].expand(-1, -1, features.shape[2]))
            own = kept.original[:, None]
            slots = torch.where(own, kept.index, slots[:, : features.shape[1]])
            after = torch.where(own, after, len(start) + features.shape[1])
        hidden = torch.cat((first, features.float(), table[ids]), dim=1)
        prefix = hidden.shape[1] - ids.shape[1]
        before = torch.arange(len(start), device=ids.device).expand(ids.shape[0], -1)
        positions = torch.cat((before, len(start) + slots, after + offset), dim=1)
        cos, sin = rotary(positions, HIDDEN // config.num_attention_heads, config.rope_parameters["rope_theta"])
        states, _, early = decode(
            text_model.layers,
            text_model.norm,
            config.num_attention_heads,
            config.num_key_value_heads,
            hidden,
            prefix,
            segment,
            cos,
            sin,
            early=NAMING_LAYER,
            late=late and Late(late.layer, functional.pad(late.dropped, (len(start), 0))),
        )
        return functional.linear(states, table), early

    def contrasted(self, model: nn.Module) -> tuple[nn.Module, ...]:
        tower = _tower(model)
        return (*tower.encoder.layers[-2:], tower.post_layernorm)

    def contrast(
        self, model: nn.Module, before: nn.Module, pixels: Tensor, constants: None
    ) -> tuple[list[Tensor], Tensor | None, Tensor]:
        """The CLS token after the layer whose patches the decoder gets, and after the last, which is CLIP's own; then
        what each head of that layer collects for it: of two heads, one would otherwise rest on the ground."""
        tower = _tower(model)
        *_, selected, last = tower.encoder.layers
        with torch.no_grad():
            hidden = _embed(tower, pixels)
            for layer in tower.encoder.layers[:-2]:
                hidden = _encoder_layer(layer, hidden, hidden)
            old = _encoder_layer(before.encoder.layers[-2], hidden, hidden)[:, 1:]
        collected = _collected(selected, hidden)
        hidden = _encoder_layer(selected, hidden, hidden)
        output = _encoder_layer(last, hidden[:, :1], hidden)
        change = (hidden[:, 1:] - old).pow(2).mean() / old.var()
        pooled = [_layer_norm(tower.post_layernorm, rows[:, 0]) for rows in (hidden, output)]
        return pooled + list(collected.unbind(1)), _layer_norm(tower.post_layernorm, hidden[:, 1:]), change

    def processor(self, tokenizer: PreTrainedTokenizerFast) -> LlavaProcessor:
        images = CLIPImageProcessorPil(
            size={"shortest_edge": SIDE},
            crop_size={"height": SIDE, "width": SIDE},
            image_mean=[0.5] * 3,
            image_std=[0.5] * 3,
        )
        return LlavaProcessor(
            image_processor=images,
            tokenizer=tokenizer,
            patch_size=PATCH,
            vision_feature_select_strategy="default",
            chat_template=CHAT_TEMPLATE,
            num_additional_image_tokens=1,
        )

    def export(self, model: nn.Module, tokenizer: Any, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        model.half().save_pretrained(folder)
        model.float()
        self.processor(tokenizer).save_pretrained(folder)


def _tower(model: nn.Module) -> nn.Module:
    tower = model.model.vision_tower
    return getattr(tower, "vision_model", tower)


def _encode(tower: nn.Module, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Patches [B, slots, d] after the layer before the last, and the CLS output [B, d] of the last."""
    hidden = _embed(tower, pixels)
    layers = tower.encoder.layers
    for layer in layers[:-1]:
        hidden = _encoder_layer(layer, hidden, hidden)
    output = _encoder_layer(layers[-1], hidden[:, :1], hidden)
    return hidden[:, 1:], _layer_norm(tower.post_layernorm, output[:, 0])


def _embed(tower: nn.Module, pixels: Tensor) -> Tensor:
    """CLS token and patches, [B, 1 + slots, d]."""
    batch = pixels.shape[0]
    embeddings = tower.embeddings
    cells = pixels.view(batch, 3, GRID, PATCH, GRID, PATCH).permute(0, 2, 4, 1, 3, 5).reshape(batch, GRID * GRID, -1)
    patches = functional.linear(cells, embeddings.patch_embedding.weight.flatten(1))
    cls = embeddings.class_embedding.expand(batch, 1, -1)
    hidden = torch.cat((cls, patches.float()), dim=1) + embeddings.position_embedding.weight
    return _layer_norm(tower.pre_layrnorm, hidden)


def _encoder_layer(layer: nn.Module, asking: Tensor, hidden: Tensor) -> Tensor:
    """One CLIP layer for the rows `asking`, which attend to all of `hidden`."""
    attention = layer.self_attn
    batch, _, width = hidden.shape
    normed = _layer_norm(layer.layer_norm1, hidden)
    own = normed[:, : asking.shape[1]]

    def split(states: Tensor) -> Tensor:
        return states.view(batch, states.shape[1], attention.num_heads, -1).transpose(1, 2)

    query, key, value = split(attention.q_proj(own)), split(attention.k_proj(normed)), split(attention.v_proj(normed))
    weights = ((query @ key.transpose(-1, -2)).float() * query.shape[-1] ** -0.5).softmax(-1)
    mixed = (weights.to(value.dtype) @ value).transpose(1, 2).reshape(batch, -1, width)
    asking = asking + attention.out_proj(mixed)
    inner = layer.mlp.fc1(_layer_norm(layer.layer_norm2, asking))
    return asking + layer.mlp.fc2(inner * torch.sigmoid(1.702 * inner))


def _collected(layer: nn.Module, hidden: Tensor) -> Tensor:
    """What each head of a CLIP layer brings to the CLS token, [B, heads, d]."""
    attention = layer.self_attn
    normed = _layer_norm(layer.layer_norm1, hidden)
    batch, _, width = hidden.shape
    query = attention.q_proj(normed[:, 0]).view(batch, attention.num_heads, 1, -1)
    key, value = (
        project(normed).view(batch, -1, attention.num_heads, width // attention.num_heads).transpose(1, 2)
        for project in (attention.k_proj, attention.v_proj)
    )
    weights = ((query @ key.transpose(-1, -2)).float() * query.shape[-1] ** -0.5).softmax(-1)
    mixed = (weights.to(value.dtype) @ value)[:, :, 0]
    parts = attention.out_proj.weight.view(width, attention.num_heads, -1)
    return torch.einsum("bhc,dhc->bhd", mixed, parts)


def _layer_norm(norm: nn.Module, hidden: Tensor) -> Tensor:
    return functional.layer_norm(hidden.float(), norm.normalized_shape, norm.weight, norm.bias, norm.eps)


def _sines(side: int, width: int) -> Tensor:
    """2-D sine/cosine table [side * side, width]: half of the width for the row, half for the column."""
    frequencies = 50.0 ** -(torch.arange(width // 4) / (width // 4))
    angles = torch.arange(side)[:, None] * frequencies
    axis = torch.cat((angles.sin(), angles.cos()), dim=1)
    rows = axis[:, None].expand(side, side, -1)
    columns = axis[None].expand(side, side, -1)
    return torch.cat((rows, columns), dim=-1).reshape(side * side, width)
