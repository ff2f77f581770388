"""What an adapter tells the runtime about a model family."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from transformers.image_processing_base import ImageProcessingMixin

from vlmprune.core.errors import UserError
from vlmprune.core.view import Grid, ModelInfo, TowerRows
from vlmprune.models.slots import Slots, raster

# what adapters are written with
__all__ = ["CLIP", "HALF", "IMAGENET", "Adapter", "Normalisation", "Rotary", "Slots", "raster", "split_rows"]


class Normalisation(NamedTuple):
    """How a family's processor normalises pixels in [0, 1] for the encoder, with one number per channel."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


# transformers' names: OPENAI_CLIP, IMAGENET_DEFAULT, IMAGENET_STANDARD (SigLIP and most towers after it)
CLIP = Normalisation((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
IMAGENET = Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = Normalisation((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


Turned = Tensor | tuple[Tensor, Tensor]  # a rotary embedding: cos and sin, or one complex tensor (Llama 4)
Rotary = Callable[[Tensor, Tensor], Turned]  # of something of the right dtype and device, and position ids


class Adapter:
    """Where things are in one family's model, how its patches become visual slots, and how it counts positions.

    A subclass overrides what differs; the defaults describe transformers' usual layout (`model.model.language_model`).

    Attributes:
        model: the model that the user calls.
        inner: the multimodal model in it, with the vision encoder and the text model; `model` itself if it has no head.
        config: of `inner`; in the copy that `called_with` makes, with the settings of that call.
        families: every model_type that it is for, as literals, by which `vlmprune.models` finds the adapter.
        family: the first of these, for methods' defaults and messages; if there is none, the config's model_type.
        feature_functions: the function of `inner` that encodes each modality.
        pixels: the argument of that function that holds the pixels.
        side_by_side: the axis along which an argument's pictures stand, where that is not the first.
        renamed: arguments that processors still return under an older name: {older: name}.
        normalisation: that of the processor that the family is published with.
        features_in: the field of the encoder's output that `features` are made of.
        whole_tile: of the tiles that make an image, the one that shows all of it.
    """

    families: ClassVar[tuple[str, ...]] = ()
    family: str
    feature_functions: dict[str, str] = {"image": "get_image_features"}
    pixels: ClassVar[dict[str, str]] = {"image": "pixel_values", "video": "pixel_values_videos"}
    side_by_side: ClassVar[dict[str, int]] = {}
    renamed: ClassVar[dict[str, str]] = {}
    normalisation: Normalisation = HALF
    features_in: ClassVar[str] = "pooler_output"
    whole_tile: ClassVar[int] = -1
    cls_last: ClassVar[bool] = False  # whether the CLS token, if there is one, stands behind the patches
    tower_rows: ClassVar[bool] = False  # whether there is one row per slot before the projector
    later_token_type: ClassVar[int] = 0  # token_type_ids of what the model writes
    images_behind_caches: ClassVar[bool] = True  # whether a further turn may bring new images
    text_arguments: ClassVar[tuple[str, ...]] = ()  # of the text model beside the embeddings, [B, S, ...]
    layer_arguments: ClassVar[tuple[str, ...]] = ()  # of decoder layers beside their hidden states, [B, S, ...]

    def __init__(self, model: nn.Module, inner: Any) -> None:
        self.model = model
        self.inner = inner
        self.config: Any = self.inner.config
        self.text_config: Any = self.config.get_text_config()
        self.family = self.families[0] if self.families else self.config.model_type
        self._rotary_of: dict[int, Rotary] = {}  # by decoder layer, once seen to be its own

    @classmethod
    def knows(cls, config: Any) -> bool:
        """Whether the adapter describes a model with this config; other models get the generic adapter."""
        return True

    @classmethod
    def variant(cls, config: Any) -> type[Adapter]:
        """The class for a model with this config: this one, or another for a variant that differs in most things."""
        return cls

    def called_with(self, function: str, call: Mapping[str, Any]) -> Adapter:
        """The adapter for one call of the model: arguments of the call override the config.

        Args:
            function: the `get_*_features` that is called.
            call: its arguments by name; only those that the config also has (`vision_feature_layer`, ...) matter.

        Raises:
            UserError: `knows` rejects a model with these settings.
        """
        named = inspect.signature(getattr(self.inner, function)).parameters
        given = {
            name: value
            for name, value in call.items()
            if name in named and hasattr(self.config, name) and not isinstance(value, Tensor | None)
        }
        given = {name: value for name, value in given.items() if value != getattr(self.config, name)}
        if not given:
            return self
        config = copy.copy(self.config)
        vars(config).update(given)
        if not self.knows(config):
            settings = " and ".join(f"{name}={value!r}" for name, value in given.items())
            raise UserError(
                f"vlmprune cannot follow {settings} in a call of this {self.family}: set it in model.config instead, "
                "before vlmprune.prune()."
            )
        adapter = copy.copy(self)
        adapter.config = config
        return adapter

    # ------------------------------------------------------------------ the language model

    @property
    def text_model(self) -> Any:
        return self.inner.language_model

    @property
    def decoder_layers(self) -> Sequence[nn.Module]:
        return self.text_model.layers

    def decoder_attention(self, layer: int) -> nn.Module:
        """The module of decoder layer `layer` that calls the attention function."""
        if self.layer_kind(layer) == "linear_attention":
            after = [str(read + 1) for read in self.attention_layers if read + 1 < len(self.decoder_layers)]
            raise UserError(
                f"Decoder layer {layer} of this model has no attention map (it is a linear attention layer): act "
                f"before one of the layers {', '.join(after)}, which follow one that has."
            )
        return attention_of(self.decoder_layers[layer])

    def layer_kind(self, layer: int) -> str:
        """The config's name for how a decoder layer attends: "full_attention", "sliding_attention", ..."""
        kinds = getattr(self.text_config, "layer_types", None)
        if kinds:
            return kinds[layer]
        return "sliding_attention" if getattr(self.text_config, "sliding_window", None) else "full_attention"

    @property
    def attention_layers(self) -> list[int]:
        """Decoder layers that store keys and values."""
        return [i for i in range(len(self.decoder_layers)) if self.layer_kind(i) != "linear_attention"]

    @property
    def first_sharing(self) -> int:
        """The first decoder layer that stores no keys and reads those of an earlier one; all later ones do the same."""
        return len(self.decoder_layers)

    def stored_by(self, layer: int) -> int:
        """The decoder layer whose keys and values a decoder layer reads."""
        return layer

    @property
    def only_before(self) -> str | None:
        """Why tokens can be cut before the language model only, in a clause; None where they can inside it, too.

        The runtime then leaves the decoder layers alone: the language model makes their masks and rotary embeddings of
        the shorter sequence itself.
        """
        return None

    def check_inside(self, layer: int) -> None:
        """Raise UserError if the tokens cannot be cut before a decoder layer. By default they can before each."""
        if self.only_before is not None:
            raise UserError(
                f"The tokens of a {self.family} can be cut before its language model only, for {self.only_before}: "
                "choose a method that acts there, such as divprune."
            )

    @property
    def final_norm(self) -> nn.Module:
        """The norm between the last decoder layer and the head."""
        return self.text_model.norm

    def first_norm(self, layer: int) -> nn.Module:
        """The norm at the start of a decoder layer."""
        norm = getattr(self.decoder_layers[layer], "input_layernorm", None)
        if norm is None:
            raise UserError(
                f"vlmprune does not know the norm at the start of {self.family}'s decoder layers: choose a method that "
                "does not read it."
            )
        return norm

    def mlp(self, layer: int) -> nn.Module | None:
        """The MLP of a decoder layer; None where vlmprune does not find it."""
        return getattr(self.decoder_layers[layer], "mlp", None)

    def turns(self, layer: int) -> bool:
        """Whether a decoder layer turns queries and keys by the rotary embedding that it is given."""
        return True

    def rotary(self, hidden: Tensor, positions: Tensor, layer: int) -> Turned:
        """cos and sin at a decoder layer of position ids [B, L], or [axes, B, L] for M-RoPE."""
        rotary = self.text_model.rotary_emb
        if "layer_type" in inspect.signature(rotary.forward).parameters:
            return rotary(hidden, positions, self.layer_kind(layer))
        return rotary(hidden, positions)

    def rotaries(self, layer: int) -> list[Rotary]:
        """The modules that may make the rotary embedding of a decoder layer, the most likely one first."""
        return [partial(self.rotary, layer=layer)]

    def rotary_at(self, layer: int, positions: Tensor, given: Turned, given_positions: Tensor) -> Turned:
        """cos and sin that the model would give a decoder layer at other position ids.

        Args:
            positions: [B, P], or [axes, B, P] for M-RoPE, without the row that counts text.
            given: cos and sin that the layer gets in this forward.
            given_positions: the position ids that the model made these from, [B or 1, L] or [axes, B, L].

        Raises:
            UserError: no module of the text model makes `given` from `given_positions`.
        """
        like = parts(given)[0]
        rotary = self._rotary_of.get(layer)
        if rotary is None:
            choices = self.rotaries(layer)
            made = (parts(choice(like, given_positions.to(like.device))) for choice in choices)
            distances = [distance(found, parts(given)) for found in made]
            best = min(distances)
            if best > rounding(like):
                raise UserError(
                    f"Decoder layer {layer} of {self.family} gets positions by a rule that vlmprune does not know, so "
                    "they cannot be re-numbered: prune with positions='original'."
                )
            rotary = choices[distances.index(best)]
            if distances.count(best) == 1:  # else they may still differ at higher positions: look again next time
                self._rotary_of[layer] = rotary
        return rotary(like, positions.to(like.device))

    def position_inputs(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """What the model's `get_rope_index` reads of a prompt's inputs beside ids and mask."""
        known = inspect.signature(self.inner.get_rope_index).parameters
        given = {name: inputs[name] for name in known if inputs.get(name) is not None}
        return {name: value for name, value in given.items() if name not in ("input_ids", "attention_mask")}

    def entering(self, features: Tensor, embeds: Tensor) -> Tensor | None:
        """What the model adds to projected features to make embeddings of them, or None if it adds nothing.

        Args:
            features: [m, D] projected features of an image.
            embeds: [m, D] what the language model was handed at their slots.

        Returns:
            None where these are the same, [D] the placeholder's embedding where the model adds that (Molmo 2).

        Raises:
            UserError: the embeddings are made from the features in some other way.
        """
        features = features.to(embeds)
        if within_rounding(features, embeds):
            return None
        for token in set(self.placeholder_ids.values()):
            placeholder = self.inner.get_input_embeddings()(torch.tensor(token, device=embeds.device)).to(embeds)
            if within_rounding(features + placeholder, embeds):
                return placeholder
        raise UserError(
            f"{self.family} changes the encoder's features before its language model sees them, in a way that vlmprune "
            "does not know: methods that make new tokens cannot run on it, those that only drop tokens (divprune, "
            "fastv, ...) can."
        )

    def blocks(self, call: Mapping[str, Any]) -> Tensor | None:
        """Blocks of tokens that see each other in both directions, in a call of `inner` with these arguments.

        Returns:
            [B, S] the number of each token's block, -1 for a token that attends causally; None if all attend causally.
        """
        return None

    def two_way(self, kind: str, cache: Any) -> bool:
        """Whether the tokens of a block see each other in layers of this kind, in a forward with this cache."""
        return True

    def window_cuts_blocks(self, cache: Any) -> bool:
        """Whether a sliding window also limits what a block's tokens see of it, in a forward with this cache."""
        return True

    @property
    def longest(self) -> int | None:
        """Tokens of a pruned prompt and its answer, dropped ones and padding counted, that there may be at most.

        None where more of them change nothing but positions.
        """
        return None

    def check_prompt(self, call: Mapping[str, Any]) -> None:
        """Raise UserError if a call of the text model with these arguments cannot be shortened. By default all can."""

    # ------------------------------------------------------------------ the vision encoder

    def check_statistics(self) -> None:
        """Raise UserError if the encoder's tokens cannot be mapped to slots. By default they can."""

    def encoder_layers(self, modality: str = "image") -> Sequence[nn.Module]:
        raise NotImplementedError

    def encoder_attentions(self, modality: str = "image") -> Sequence[nn.Module]:
        """The modules that call the attention function, one per encoder layer."""
        return [attention_of(layer) for layer in self.encoder_layers(modality)]

    @property
    def placeholder_ids(self) -> dict[str, int]:
        """Token id of a visual slot, by modality."""
        return {modality: getattr(self.config, f"{modality}_token_id") for modality in self.feature_functions}

    @property
    def has_cls(self) -> bool:
        return False

    @property
    def used_layer(self) -> int:
        """Encoder layer (0-based) whose output the projector reads."""
        return len(self.encoder_layers()) - 1

    @property
    def full_layers(self) -> tuple[int, ...] | None:
        """Encoder layers whose attention spans the whole image, or None if that of all layers does."""
        return None

    @property
    def info(self) -> ModelInfo:
        depth, readable = len(self.decoder_layers), tuple(self.attention_layers)
        return ModelInfo(
            self.family, len(self.encoder_layers()), depth, self.has_cls, None if len(readable) == depth else readable
        )

    # ------------------------------------------------------------------ from patches to slots

    def features(self, modality: str, call: dict[str, Any], pooled: Any) -> list[Tensor]:
        """What a `get_*_features` call returns in `features_in`, as one tensor [count, D] per piece."""
        return list(pooled)

    def slots(self, modality: str, call: dict[str, Any], counts: Sequence[int] | None = None) -> list[Slots]:
        """Where the slots of each piece lie, in a `get_*_features` call with these arguments.

        Args:
            counts: how many features each piece has; None before it is encoded.
        """
        raise NotImplementedError

    def rows(
        self, modality: str, call: dict[str, Any], chunks: Sequence[Tensor], counts: Sequence[int]
    ) -> list[TowerRows]:
        """A statistic of encoder tokens as rows of slots, one entry per piece; NaN for a slot without a patch.

        Args:
            chunks: what each attention call of the layer saw, in order: [batch, tokens, ...].
            counts: how many features, and so slots, each piece has.
        """
        raise NotImplementedError

    def pixel_rows(self, modality: str, call: dict[str, Any], normalized: bool) -> list[Tensor]:
        """The pixels of each slot (see `core.signals.Pixels`), [count, P] float32 per piece; NaN without a patch."""
        raise UserError(f"vlmprune does not know which pixels a visual token of {self.family} shows.")

    def raw(self, pixels: Tensor, axis: int) -> Tensor:
        """Pixels with the processor's normalisation undone; `axis` (counted from the end) holds the channels."""
        shape = (-1, *[1] * (-axis - 1))
        mean, std = (torch.tensor(values, device=pixels.device).view(shape) for values in self.own_normalisation)
        return (pixels * std).add_(mean)  # in place, as videos are large

    @cached_property
    def own_normalisation(self) -> Normalisation:
        """The normalisation of the processor saved with this model's weights, if it is on disk; else the family's."""
        try:
            place = self.config._name_or_path
            found, _ = ImageProcessingMixin.get_image_processor_dict(place, local_files_only=True)
        except OSError:  # a model made in memory, or a folder without a processor
            return self.normalisation
        if found.get("do_normalize") is False:
            return Normalisation((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
        if not found.get("image_mean") or not found.get("image_std"):  # its class knows them
            return self.normalisation
        return Normalisation(tuple(found["image_mean"]), tuple(found["image_std"]))

    def images(self, ids: Tensor | None, columns: Sequence[Tensor]) -> list[int]:
        """For each image, how many successive pieces make it; for most families a piece is an image.

        Args:
            ids: [S] the token ids of one row; if embeddings were given, numbers that are equal where embeddings are.
            columns: the prompt columns of each piece of the row.
        """
        return [1] * len(columns)

    def project(self, rows: Tensor) -> Tensor:
        """Tower rows [m, C] to LLM embeddings [m, D]."""
        return rows

    @property
    def slot_pixels(self) -> int | None:
        """Pixels of the encoder's input across one slot, for models that `resizes`; None where nobody asks."""
        return None

    @property
    def resizes(self) -> bool:
        """Whether smaller pictures, and frames, have fewer slots, so that `resize` saves tokens of any input."""
        return False

    def resize(self, modality: str, call: dict[str, Any], grids: Sequence[Grid]) -> dict[str, Any]:
        """The arguments of `get_*_features` for the same pieces resized to these slot grids."""
        raise UserError(
            f"vlmprune cannot resize pictures for {self.family}: choose a method that drops tokens, such as random."
        )


def parts(turned: Turned) -> tuple[Tensor, ...]:
    """The tensors of a rotary embedding."""
    return (turned,) if isinstance(turned, Tensor) else turned


def each(turned: Turned, change: Callable[[Tensor], Tensor]) -> Turned:
    """A rotary embedding whose tensors are all changed alike."""
    return change(turned) if isinstance(turned, Tensor) else (change(turned[0]), change(turned[1]))


def distance(found: Sequence[Tensor], given: Sequence[Tensor]) -> float:
    """The largest difference between pairs of tensors whose first axes may differ (1, or the batch)."""
    if any(a.shape[1:] != b.shape[1:] for a, b in zip(found, given, strict=True)):
        return float("inf")
    return max(float((a - b).detach().abs().max()) for a, b in zip(found, given, strict=True))


def rounding(values: Tensor) -> float:
    """What rounding may make of numbers up to 1, twice over; in float32 also a cosine compiled otherwise."""
    return max(1e-5, 2 * torch.finfo(values.dtype).eps)


def within_rounding(found: Tensor, given: Tensor) -> bool:
    """Whether tensors of one shape and dtype are equal but for the last bits."""
    largest = float(given.detach().abs().max())
    return float((found - given).detach().abs().max()) <= 4 * torch.finfo(given.dtype).eps * largest


def attention_of(layer: Any) -> nn.Module:
    """The attention module of an encoder or decoder layer, by the names that transformers uses."""
    for name in ("self_attn", "attn", "attention"):
        if hasattr(layer, name):
            return getattr(layer, name)
    raise AttributeError(f"{type(layer).__name__} has no attention module under a known name")


def split_rows(values: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    return list(torch.split(values, list(sizes)))
