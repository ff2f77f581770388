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

from vlmprune.core.budget import Keep
from vlmprune.runtime.apart import Apart, Kept
from vlmprune.serve.vllm.asked import asked_of
from vlmprune.serve.vllm.deepstack import levels_of
from vlmprune.serve.vllm.families import apart_of
from vlmprune.serve.vllm.figures import SELECTION, counters
from vlmprune.serve.vllm.limits import check_engine
from vlmprune.serve.vllm.positions import AXES, going_on, shortened, with_offsets, without_offsets, written
from vlmprune.serve.vllm.processor import BUDGETS, PrunedProcessingInfo, PrunedProcessor, pixels_of_items
from vlmprune.serve.vllm.ranks import check_ranks, first_ranks, on_ranks
from vlmprune.serve.vllm.told import Told, as_keep, field

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
        self.under = lru_cache(BUDGETS, typed=True)(self._under)
        self.apart = self.under(None)
        self.levels = levels_of(self.model, vllm_config)
        if self.axes:
            self._ask_for_positions(vllm_config.model_config.multimodal_config)

    def _under(self, keep: Keep | None) -> Apart:
        """The recipe on the model, under a request's budget or its own."""
        apart = apart_of(self.model, self.asked.under(keep), self.axes)
        return on_ranks(apart, self.tp_group)

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
        told = [Told(*row) for row in kwargs.pop(field(modality)).tolist()]
        parts = num_patches.flatten().tolist()
        if isinstance(pixel_values, Tensor) and len({one.keep for one in told}) == 1:
            return self._pruned(modality, pixel_values, parts, told, kwargs)
        found: list[Tensor] = []
        pixels = pixels_of_items(pixel_values, parts)
        for item, own in enumerate(pixels):
            others = self._select_item_kwargs(kwargs, item, len(pixels))
            found += self._pruned(modality, own, parts[item : item + 1], told[item : item + 1], others)
        return found

    def _pruned(
        self, modality: str, pixels: Tensor, parts: Sequence[int], told: Sequence[Told], kwargs: dict[str, Any]
    ) -> list[Tensor]:
        """What the LLM reads of each image of one call of the encoder, [kept, D (+ levels * D) (+ CHANNELS)] each.

        Args:
            told: of the images, which have one and the same budget.
        """
        seconds = kwargs.pop(SECONDS, None)
        call = {name: value.to(pixels.device) if isinstance(value, Tensor) else value for name, value in kwargs.items()}
        call[self.apart.adapter.pixels[modality]] = pixels
        images = self._encoded(self.under(as_keep(told[0].keep)), modality, call, parts, told)
        due = [one.kept for one in told]
        if [len(image.features) for image in images] != due:
            raise RuntimeError(f"{self.asked.recipe} kept {[len(i.features) for i in images]} tokens instead of {due}")
        rows = [torch.cat([image.features, *image.levels], dim=1) for image in images]
        if not self.axes:
            return rows
        return [
            with_offsets(own, self._offsets(modality, image, kwargs[f"{modality}_grid_thw"][item], seconds, item))
            for item, (own, image) in enumerate(zip(rows, images, strict=True))
        ]

    def _encoded(
        self, apart: Apart, modality: str, call: dict[str, Any], parts: Sequence[int], told: Sequence[Told]
    ) -> list[Kept]:
        """What is left of each image, on all GPUs that share the model what the first of them chose."""
        before = apart.seconds
        images = apart.encode(modality, call, parts, [one.seed for one in told])
        if self.tp_group.is_first_rank:
            counters(SELECTION).add({SELECTION[0]: apart.seconds - before})
        return first_ranks(self.tp_group, images)

    def _offsets(self, modality: str, image: Kept, thw: Tensor, seconds: Tensor | None, item: int) -> Tensor:
        """[m, AXES] positions of an image's kept tokens, counted from its first one."""
        grid = {f"{modality}_grid_thw": thw[None].cpu()}
        if seconds is not None:
            grid["second_per_grid_ts"] = seconds[item : item + 1].cpu()
        merge = self.config.vision_config.spatial_merge_size
        count = int(thw.prod()) // merge**2
        token = self.apart.adapter.placeholder_ids[modality]
        kind = 1 if modality == "image" else 2
        positions, _ = self.model.get_rope_index(
            input_ids=torch.full((1, count), token), mm_token_type_ids=torch.full((1, count), kind), **grid
        )
        offsets = positions[-AXES:, 0].T.to(image.slots.device)
        return offsets[image.slots.clamp(min=0)]

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
        tokens, features, blocks = list(input_tokens), [], []
        grown = 0
        for feature in sorted(mm_features, key=lambda one: one.mm_position.offset):
            whole, kept, *_ = feature.data[field(feature.modality)].data.tolist()
            place = feature.mm_position
            inside = [place.length] if place.is_embed is None else place.is_embed.nonzero().squeeze(1).tolist()
            first = place.offset + grown + (0 if place.is_embed is None else inside[0])
            token = tokens[first]
            tokens[first:first] = [token] * (whole - kept)
            blocks.append((first, whole, kept))
            features.append(replace(feature, mm_position=PlaceholderRange(first, whole)))
            grown += whole - kept
        whole, _ = super().get_mrope_input_positions(tokens, features)
        positions = shortened(whole, blocks)
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
            offsets = torch.cat([own for _, own in apart]).to(positions.device)
            positions = written(positions, torch.isin(ids, tokens), offsets, num_computed_tokens)
        return [features for features, _ in apart], positions, going_on(positions)


def _asks(runner: Any) -> bool:
    """Whether a runner's model is asked for positions, as vLLM's runner for GPUs finds out when it loads the model."""
    config = runner.model_config.multimodal_config
    model = runner.__dict__.get("model")
    enabled = config is not None and config.is_multimodal_pruning_enabled()
    return enabled and model is not None and supports_multimodal_pruning(model)
