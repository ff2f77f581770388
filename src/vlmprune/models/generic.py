"""An adapter for any family that follows transformers' usual layout, recognised by the parts of its model.

Expected: `model.model` with `get_image_features` and a text model of decoder layers that take `position_embeddings`,
called with `inputs_embeds`. What cannot be known from the outside is refused in words, at the start or at the first
prompt; `vlmprune doctor` compares the rest with the oracle.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from vlmprune.core.errors import UserError
from vlmprune.core.view import Grid, TowerRows
from vlmprune.models.base import Adapter, Rotary, Slots, raster
from vlmprune.models.layout import (
    ATTENTION_KINDS,
    RECURRENT_KINDS,
    attends,
    only_before,
    placeholder,
    text_model_of,
)
from vlmprune.models.patches import layer_of_hidden_state

TOWERS = ("vision_tower", "visual", "vision_model", "vision_encoder", "vision_embed_tokens")
NORMS = ("norm", "final_layernorm", "embedding_norm", "final_norm")  # of the text model
WINDOWS = ("window_size", "fullatt_block_indexes", "global_attn_indexes", "layer_types")  # in a tower's config
PER_TOKEN = ("ple_input_ids",)  # ids of which n-grams are looked up: those of what is left
SHORTENED = (
    "inputs_embeds", "attention_mask", "position_ids", "visual_pos_masks", "deepstack_visual_embeds", *PER_TOKEN,
)  # fmt: skip


class GenericAdapter(Adapter):
    """For a model without a `misfit`.

    Each entry of the encoder's output counts as an image: an image or video for most families, a tile or all images of
    a sample for some. Encoder statistics exist where every picture gives one tower token per slot, CLS apart.
    """

    text_arguments = PER_TOKEN

    def __init__(self, model: nn.Module, inner: Any) -> None:
        super().__init__(model, inner)
        wanted = {"image": "get_image_features", "video": "get_video_features"}
        ids = {modality: placeholder(self.config, modality) for modality in wanted}
        self.feature_functions = {
            modality: name for modality, name in wanted.items() if hasattr(self.inner, name) and ids[modality]
        }

    # ------------------------------------------------------------------ the language model

    @property
    def text_model(self) -> Any:
        return text_model_of(self.inner)

    @property
    def final_norm(self) -> Any:
        name = next((name for name in NORMS if hasattr(self.text_model, name)), None)
        if name is None:
            raise UserError(f"The language model of {self.family} has no final norm by a name that vlmprune knows.")
        return getattr(self.text_model, name)

    def rotaries(self, layer: int) -> list[Rotary]:
        """All in the text model, as it may have several for its layers (Molmo 2), for each kind of layer."""
        text, own = self.text_model, super().layer_kind(layer)
        kinds = [own, *sorted({super(GenericAdapter, self).layer_kind(i) for i in range(len(text.layers))} - {own})]
        others = [m for m in text.children() if any(name.endswith("inv_freq") for name, _ in m.named_buffers())]
        found: list[Rotary] = []
        for module in dict.fromkeys([text.rotary_emb, *others]):
            if "layer_type" in inspect.signature(module.forward).parameters:
                found += [partial(module, layer_type=kind) for kind in kinds if kind in ATTENTION_KINDS]
            else:
                found.append(module)
        return found

    @property
    def only_before(self) -> str | None:
        return only_before(self.text_config)

    def layer_kind(self, layer: int) -> str:
        kind = super().layer_kind(layer)
        return "linear_attention" if kind in RECURRENT_KINDS else kind

    @property
    def placeholder_ids(self) -> dict[str, int]:
        found = {modality: placeholder(self.config, modality) for modality in self.feature_functions}
        return {modality: token for modality, token in found.items() if token is not None}

    def check_prompt(self, call: Mapping[str, Any]) -> None:
        """Raise UserError where the text model is handed something that cannot be shortened with the sequence."""
        named = inspect.signature(self.text_model.forward).parameters
        for name, value in call.items():
            # states among the arguments that it does not state, too; ids and types there are for its masks
            handed = [tensor for tensor in tensors(value) if name in named or _holds_states(tensor)]
            if name not in SHORTENED and handed:
                raise UserError(
                    f"{self.family} hands its language model {name!r}, and vlmprune does not know how to shorten it."
                )
        self._check_positions(call.get("position_ids"), call["inputs_embeds"])
        mask, cache = call.get("attention_mask"), call.get("cache")
        past = 0 if cache is None else int(cache.get_seq_length())
        for given in mask.values() if isinstance(mask, dict) else [mask]:
            self._check_mask(given, past)

    def _check_positions(self, positions: Tensor | None, embeds: Tensor) -> None:
        """One id per token, or Qwen's three axes, alone or behind a row that counts tokens."""
        if positions is None:
            return
        axes = (getattr(self.text_config, "rope_parameters", None) or {}).get("mrope_section", (0, 0, 0))
        whole = positions.shape[-2] in (1, embeds.shape[0]) and positions.shape[-1] == embeds.shape[1]
        if not whole or (positions.ndim == 3 and (positions.shape[0] not in (3, 4) or len(axes) != 3)):
            raise UserError(f"{self.family} counts positions in a way that vlmprune does not know.")

    def _check_mask(self, mask: Any, past: int) -> None:
        if mask is None or (isinstance(mask, Tensor) and mask.ndim == 2):
            return
        if not isinstance(mask, Tensor):
            raise UserError(f"{self.family} makes attention masks of its own: use sdpa or eager attention to prune it.")
        seen = mask if mask.dtype == torch.bool else mask == 0
        before = min(past, mask.shape[-1] - mask.shape[-2])  # columns; a sliding window holds fewer than all
        if bool(seen.triu(before + 1).any()):
            raise UserError(
                f"In {self.family}, tokens of an image see each other in both directions, by a rule that vlmprune does "
                "not know."
            )

    def blocks(self, call: Mapping[str, Any]) -> None:
        encoded = call.get("mm_encoder_outputs") or {}
        for modality, name in self.pixels.items():
            given = call.get(name) is not None or encoded.get(modality) is not None
            if given and modality not in self.feature_functions:
                raise UserError(
                    f"vlmprune prunes no {modality}s with {self.family}: it found no placeholders for them."
                )

    # ------------------------------------------------------------------ the vision encoder

    @cached_property
    def tower(self) -> Any:
        return next((getattr(self.inner, name) for name in TOWERS if hasattr(self.inner, name)), None)

    @cached_property
    def _stacks(self) -> list[nn.ModuleList]:
        """Lists of layers with attention in the tower."""
        modules = self.tower.modules() if isinstance(self.tower, nn.Module) else ()
        return [module for module in modules if isinstance(module, nn.ModuleList) and attends(module)]

    def encoder_layers(self, modality: str = "image") -> Sequence[nn.Module]:
        return self._stacks[0] if len(self._stacks) == 1 else []  # type: ignore[return-value]

    @cached_property
    def has_cls(self) -> bool:  # type: ignore[override]
        names = [name.rpartition(".")[2] for name, _ in self.tower.named_parameters()] if self._stacks else []
        return any(name in ("class_embedding", "cls_token", "class_token") for name in names)

    @property
    def used_layer(self) -> int:
        index = getattr(self.config, "vision_feature_layer", None)
        return (
            layer_of_hidden_state(index, len(self.encoder_layers())) if isinstance(index, int) else super().used_layer
        )

    def check_statistics(self) -> None:
        if reason := self._unmapped():
            self._refuse_statistics(reason)

    def _unmapped(self) -> str | None:
        """Why attention of the encoder cannot be told apart by slots, as far as the model itself shows it."""
        vision = getattr(self.config, "vision_config", None)
        if not self.encoder_layers():
            return "vlmprune found no single stack of attention layers in its vision encoder"
        if any(getattr(vision, name, None) for name in WINDOWS):
            return "its vision encoder attends within windows"
        if isinstance(getattr(self.config, "vision_feature_layer", None), list | tuple):
            return "it takes features from several encoder layers"
        if self._resamples:
            return "a resampler stands between its vision encoder and the language model"
        return None

    @cached_property
    def _between(self) -> list[str]:
        """Names of what stands between tower and text model, and of its parameters."""
        inside = (self.tower, self.text_model)
        modules = [module for name, module in self.inner.named_children() if module not in inside]
        return [name.lower() for module in modules for name, _ in module.named_parameters(prefix=type(module).__name__)]

    @property
    def _resamples(self) -> bool:
        """Whether something between tower and text model asks the patches by learned queries."""
        words = ("resampler", "perceiver", "qformer", "latents", ".query")
        return any(word in name for name in self._between for word in words)

    def _refuse_statistics(self, reason: str) -> None:
        raise UserError(f"Methods that read the vision encoder cannot run on {self.family}: {reason}.")

    # ------------------------------------------------------------------ from patches to slots

    def features(self, modality: str, call: dict[str, Any], pooled: Any) -> list[Tensor]:
        if pooled is None:
            raise UserError(f"vlmprune looked for pooler_output in the encoder's output of {self.family}, found none.")
        if isinstance(pooled, Tensor) and pooled.ndim == 2:  # all pictures in a row
            if len(call[self.pixels[modality]]) > 1:
                raise UserError(f"{self.family} does not say where the features of an image end: give one image.")
            pooled = [pooled]
        pieces = [piece.flatten(0, -2) for piece in pooled]
        if self._latents:
            pieces = [image for piece in pieces for image in piece.split(self._latents)]
        return [piece for piece in pieces if len(piece)]  # a sample without images may have an empty entry

    @property
    def _latents(self) -> int | None:
        """Tokens that a resampler makes of every picture, where an entry of the encoder's output holds a sample's."""
        if self.config.model_type != "idefics2":
            return None
        return self.config.perceiver_config.resampler_n_latents  # type: ignore[no-any-return]

    def slots(self, modality: str, call: dict[str, Any], counts: Sequence[int] | None = None) -> list[Slots]:
        """A grid only where each slot can be nothing but a patch in its place."""
        if counts is None:  # asked by a method that resizes
            raise UserError(
                f"vlmprune cannot resize pictures for {self.family}: choose a method that drops tokens, such as random."
            )
        # frames of a video may be pooled, and then count as many slots as one of them has patches
        grid = self._patch_grid(call[self.pixels[modality]]) if modality == "image" else None
        return [
            raster(grid) if grid is not None and grid.size == count else Slots(None, torch.arange(count))
            for count in counts
        ]

    def _patch_grid(self, pixels: Tensor) -> Grid | None:
        patch = getattr(getattr(self.config, "vision_config", None), "patch_size", None)
        if not isinstance(patch, int) or pixels.ndim < 4 or self._resamples:
            return None
        return Grid(pixels.shape[-2] // patch, pixels.shape[-1] // patch)

    def rows(
        self, modality: str, call: dict[str, Any], chunks: Sequence[Tensor], counts: Sequence[int]
    ) -> list[TowerRows]:
        if not chunks:
            self._refuse_statistics("its vision encoder does not use transformers' attention functions")
        if any(".q_proj" in name for name in self._between):  # it may pool patches in any order (Molmo 2)
            self._refuse_statistics("attention stands between its vision encoder and the language model")
        sizes = {tuple(chunk.shape[1:2]) for chunk in chunks}
        pictures = sum(len(chunk) for chunk in chunks)
        cls = int(self.has_cls)
        if pictures != len(counts) or sizes != {(counts[0] + cls,)} or len(set(counts)) > 1:
            self._refuse_statistics(
                "its encoder does not make one token for each that the language model sees, and vlmprune does not know "
                "which belong together"
            )
        values = torch.cat(list(chunks))
        return [TowerRows(picture[cls:], picture[:cls] if cls else None) for picture in values]


def _holds_states(tensor: Tensor) -> bool:
    """Whether a tensor may hold something for each token, or something that tokens attend to."""
    return tensor.is_floating_point() and tensor.ndim >= 3


def tensors(value: Any) -> Iterator[Tensor]:
    """All tensors in a value, its lists and its dicts."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors(item)
    elif isinstance(value, Mapping):
        yield from tensors(list(value.values()))
