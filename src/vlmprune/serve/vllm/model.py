"""The half that selects: vLLM's own backend for transformers' models, whose images are pruned as they are encoded."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, ClassVar, Literal

import torch
import vllm
from torch import Tensor
from transformers import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
from vllm.model_executor.models.interfaces import supports_multimodal_pruning
from vllm.model_executor.models.transformers import MultiModalDummyInputsBuilder, TransformersMultiModalForCausalLM
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.inputs import PlaceholderRange
from vllm.tokenizers import cached_tokenizer_from_config

from vlmprune.core.budget import Keep
from vlmprune.core.errors import UserError
from vlmprune.runtime.apart import Apart, Kept
from vlmprune.runtime.prompt_text import Vocabulary
from vlmprune.runtime.text_tower import TextTower
from vlmprune.serve.vllm.asked import asked_of
from vlmprune.serve.vllm.block import Block, Item
from vlmprune.serve.vllm.deepstack import levels_of
from vlmprune.serve.vllm.families import apart_of
from vlmprune.serve.vllm.figures import SELECTION, counters
from vlmprune.serve.vllm.limits import check_engine
from vlmprune.serve.vllm.positions import AXES, going_on, shortened, with_offsets, without_offsets, written
from vlmprune.serve.vllm.processor import BUDGETS, PrunedProcessingInfo, PrunedProcessor, pixels_of_items
from vlmprune.serve.vllm.ranks import check_ranks, first_ranks, on_ranks
from vlmprune.serve.vllm.told import FIELDS, as_keep

SECONDS = "vlmprune_seconds"
NOTHING_DROPPED = 1e-17  # a rate of vLLM's own pruning that lets it ask for positions, and drops no token


@MULTIMODAL_REGISTRY.register_processor(
    PrunedProcessor, info=PrunedProcessingInfo, dummy_inputs=MultiModalDummyInputsBuilder
)
class VlmpruneForConditionalGeneration(TransformersMultiModalForCausalLM):
    """A model of transformers in vLLM whose images and videos are pruned before the LLM."""

    supports_multimodal_pruning: ClassVar[Literal[True]] = True

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        check_engine(vllm_config, vllm.__version__)
        check_ranks(vllm_config.parallel_config, vllm_config.model_config.hf_config)
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        self.asked = asked_of(vllm_config.model_config)
        self.axes = vllm_config.model_config.uses_mrope
        self._tower: TextTower | None = None
        self._vocabulary: Vocabulary | None = None
        self.under = lru_cache(BUDGETS, typed=True)(self._under)
        self.apart = self.under(None)
        if self.apart.reads:
            self._read_questions(vllm_config)
        counters(SELECTION)  # at nought from the start, and not only when an image has come
        self.levels = levels_of(self.model, vllm_config)
        if self.axes:
            self._ask_for_positions(vllm_config.model_config.multimodal_config)

    def _under(self, keep: Keep | None) -> Apart:
        """The recipe on the model, under a request's budget or its own."""
        apart = on_ranks(apart_of(self.model, self.asked.under(keep), self.axes), self.tp_group)
        apart.text_tower, apart.vocabulary = self._tower, self._vocabulary
        return apart

    def _read_questions(self, vllm_config: Any) -> None:
        """Load what reads the question."""
        model_config, device = vllm_config.model_config, vllm_config.device_config.device
        tokenizer = cached_tokenizer_from_config(model_config)
        if tokenizer is None:
            raise UserError(f"{self.asked.recipe} reads the question: leave out --skip-tokenizer-init.")
        self._vocabulary = Vocabulary(tokenizer, super().embed_input_ids, model_config.get_vocab_size())
        if self.asked.text_tower is not None and self.apart.needs_tower:
            self._tower = TextTower.from_pretrained(self.asked.text_tower, tokenizer)
            self._tower.check(self.apart.adapter)
            self._tower.clip.to(device)
        self.under.cache_clear()
        self.apart = self.under(None)

    def _ask_for_positions(self, config: Any) -> None:
        """Let vLLM call `recompute_mrope_positions`; its runner for CPUs forgets to ask whether it shall."""
        config.video_pruning_rate = NOTHING_DROPPED
        runners = sys.modules.get("vllm.v1.worker.cpu_model_runner")
        if runners is not None:
            runners.CPUModelRunner.is_multimodal_pruning_enabled = property(_asks, lambda runner, value: None)

    def _create_hf_to_vllm_mapper(self) -> None:
        """How the weights are renamed depends on the checkpoint's own architecture, whose place ours has taken."""
        own, theirs = self.config.architectures, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(self.config)]
        self.config.architectures = [getattr(theirs, "__name__", "")]
        try:
            super()._create_hf_to_vllm_mapper()
        finally:
            self.config.architectures = own

    # ------------------------------------------------------------------ images

    def _process_video_input(self, **kwargs: Any) -> list[Tensor] | None:
        kwargs[SECONDS] = kwargs.get("second_per_grid_ts")  # which vLLM drops, and positions depend on
        return super()._process_video_input(**kwargs)

    def _process_vision_input(
        self, modality: str, pixel_values: Any, num_patches: Tensor, **kwargs: Any
    ) -> list[Tensor]:
        told = zip(*(kwargs.pop(name(modality)) for name in FIELDS), strict=True)
        items = [Item.of(*own) for own in told]
        parts = num_patches.flatten().tolist()
        if isinstance(pixel_values, Tensor) and len({(item.told.keep, item.query) for item in items}) == 1:
            return self._pruned(modality, pixel_values, parts, items, kwargs)
        found: list[Tensor] = []
        pixels = pixels_of_items(pixel_values, parts)
        for number, own in enumerate(pixels):
            others = self._select_item_kwargs(kwargs, number, len(pixels))
            found += self._pruned(modality, own, parts[number : number + 1], items[number : number + 1], others)
        return found

    def _pruned(
        self, modality: str, pixels: Tensor, parts: Sequence[int], items: Sequence[Item], kwargs: dict[str, Any]
    ) -> list[Tensor]:
        """What the LLM reads of each image of one call of the encoder, [kept + t, D (+ levels * D) (+ CHANNELS)] each.

        Args:
            items: the images, which have one and the same budget and question.
        """
        seconds = kwargs.pop(SECONDS, None)
        call = {name: value.to(pixels.device) if isinstance(value, Tensor) else value for name, value in kwargs.items()}
        call[self.apart.adapter.pixels[modality]] = pixels
        images = self._encoded(self.under(as_keep(items[0].told.keep)), modality, call, parts, items)
        due = [item.told.kept for item in items]
        if [len(image.features) for image in images] != due:
            raise RuntimeError(f"{self.asked.recipe} kept {[len(i.features) for i in images]} tokens instead of {due}")
        found = []
        for number, (image, block) in enumerate(zip(images, (item.block for item in items), strict=True)):
            rows = torch.cat([image.features, *image.levels], dim=1)
            rows = block.in_order(self._text(block, rows), rows, image.places)
            if self.axes:
                offsets = self._offsets(modality, block, kwargs[f"{modality}_grid_thw"][number], seconds, number)
                columns = block.in_order(block.text, image.columns, image.places)
                rows = with_offsets(rows, offsets.to(rows.device)[columns])
            found.append(rows)
        return found

    def _text(self, block: Block, rows: Tensor) -> Tensor:
        """[t, ...] the embeddings of a block's text, as wide as the rows of its kept tokens, with zeros at levels."""
        text = rows.new_zeros(len(block.ids), rows.shape[1])
        if len(text):
            embedded = super().embed_input_ids(block.ids.to(rows.device))
            text[:, : embedded.shape[1]] = embedded
        return text

    def _encoded(
        self, apart: Apart, modality: str, call: dict[str, Any], parts: Sequence[int], items: Sequence[Item]
    ) -> list[Kept]:
        """What is left of each image, on all GPUs that share the model what the first of them chose."""
        before = apart.seconds
        seeds, columns = [item.told.seed for item in items], [item.block.columns for item in items]
        images = apart.encode(modality, call, parts, seeds, columns, items[0].query)
        if self.tp_group.is_first_rank:
            counters(SELECTION).add({SELECTION[0]: apart.seconds - before})
        return first_ranks(self.tp_group, images)

    def _offsets(self, modality: str, block: Block, thw: Tensor, seconds: Tensor | None, number: int) -> Tensor:
        """[whole + t, AXES] positions of an image's columns before pruning, counted from its first one."""
        grid = {f"{modality}_grid_thw": thw[None].cpu()}
        if seconds is not None:
            grid["second_per_grid_ts"] = seconds[number : number + 1].cpu()
        kind = 1 if modality == "image" else 2
        positions, _ = self.model.get_rope_index(
            input_ids=block.written(self.apart.adapter.placeholder_ids[modality])[None],
            mm_token_type_ids=kind * block.visual[None].int(), **grid,
        )  # fmt: skip
        return positions[-AXES:, 0].T

    # ------------------------------------------------------------------ DeepStack

    def embed_input_ids(
        self, input_ids: Tensor, multimodal_embeddings: Any = None, *, is_multimodal: Tensor | None = None
    ) -> Tensor:
        """What a step reads; its levels are kept for `forward`."""
        if self.levels is not None:
            multimodal_embeddings = self.levels.put(multimodal_embeddings or (), is_multimodal, len(input_ids))
        return super().embed_input_ids(input_ids, multimodal_embeddings, is_multimodal=is_multimodal)

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """As vLLM's own, with the levels added in the first layers."""
        if self.levels is not None:
            self.levels.check(inputs_embeds)
        return super().forward(input_ids, positions, intermediate_tensors, inputs_embeds, **kwargs)

    # ------------------------------------------------------------------ positions

    def get_mrope_input_positions(self, input_tokens: list[int], mm_features: list[Any]) -> tuple[Tensor, int]:
        """Positions of a prompt whose images have fewer placeholders; those of kept tokens are still to be written."""
        tokens, features, places = list(input_tokens), [], []
        grown = 0
        for feature in sorted(mm_features, key=lambda one: one.mm_position.offset):
            told, block, _ = Item.among(feature.data, feature.modality)
            place, whole = feature.mm_position, len(block.visual)
            first = place.offset + grown + (0 if place.is_embed is None else int(place.is_embed.nonzero()[0]))
            rows = told.kept + len(block.text)
            tokens[first : first + rows] = block.written(tokens[first]).tolist()
            places.append((first, whole, rows))
            features.append(replace(feature, mm_position=PlaceholderRange(first, whole, block.visual)))
            grown += whole - rows
        positions, _ = super().get_mrope_input_positions(tokens, features)
        positions = shortened(positions, places)
        return positions, going_on(positions)

    def recompute_mrope_positions(
        self,
        input_ids: list[int] | Tensor,
        multimodal_embeddings: Sequence[Tensor],
        mrope_positions: Tensor,
        num_computed_tokens: int,
    ) -> tuple[list[Tensor], Tensor, int]:
        """Write the positions of the kept tokens that vLLM is about to compute, and take them off their embeddings."""
        apart = [without_offsets(rows) for rows in multimodal_embeddings]
        positions = mrope_positions
        ids = torch.as_tensor(input_ids, device=positions.device)
        if apart:
            tokens = torch.tensor([*self.apart.adapter.placeholder_ids.values()], device=ids.device)
            offsets = [own.to(positions.device) for _, own in apart]
            positions = written(positions, torch.isin(ids, tokens), offsets, num_computed_tokens)
        return [features for features, _ in apart], positions, going_on(positions)


def _asks(runner: Any) -> bool:
    """Whether a runner's model is asked for positions, as vLLM's runner for GPUs finds out when it loads the model."""
    config = runner.model_config.multimodal_config
    model = runner.__dict__.get("model")
    enabled = config is not None and config.is_multimodal_pruning_enabled()
    return enabled and model is not None and supports_multimodal_pruning(model)
