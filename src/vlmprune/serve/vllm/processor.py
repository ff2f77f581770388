"""The half that counts: each image or video gets as many placeholders as tokens will be kept of it."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from vllm.config import CompilationMode, set_current_vllm_config
from vllm.model_executor.models.transformers.multimodal import (
    _MODALITY_SIZE_KEYS as PARTS,
)
from vllm.model_executor.models.transformers.multimodal import (
    MultiModalProcessingInfo,
    MultiModalProcessor,
)
from vllm.multimodal.inputs import MultiModalFieldConfig
from vllm.multimodal.processing import PromptReplacement, PromptUpdateDetails

from vlmprune.runtime.apart import Apart
from vlmprune.serve.vllm.asked import Asked, asked_of
from vlmprune.serve.vllm.families import apart_of, on_meta

MODALITIES = ("image", "video")


def field(modality: str) -> str:
    """The name of what the counting half tells the selecting half of each item: [whole, kept, seed]."""
    return f"vlmprune_{modality}"


class PrunedProcessingInfo(MultiModalProcessingInfo):
    """What vLLM asks of the model before it has one."""

    @cached_property
    def asked(self) -> Asked:
        return asked_of(self.ctx.model_config)

    @cached_property
    def apart(self) -> Apart:
        model_config = self.ctx.model_config
        # vLLM changes the classes of a model that it has loaded, in this process, too: they ask for its config
        config: Any = SimpleNamespace(
            model_config=model_config, compilation_config=SimpleNamespace(mode=CompilationMode.NONE)
        )
        with set_current_vllm_config(config):
            model = on_meta(self.get_hf_config())
        return apart_of(model, self.asked, model_config.uses_mrope)

    def get_supported_mm_limits(self) -> dict[str, int | None]:
        """No videos: the plugin was not tested with any, and vLLM refuses a request that has one."""
        return {**super().get_supported_mm_limits(), "video": 0}

    @property
    def model_id(self) -> str:
        """Part of the hash of each item, under which its tokens and what follows them are cached."""
        return f"{super().model_id}:{self.asked}"


class PrunedProcessor(MultiModalProcessor):
    """transformers' processor, with fewer placeholders."""

    info: PrunedProcessingInfo

    def _apply_hf_processor_main(self, mm_items: Any, hf_kwargs: Mapping[str, object]) -> Any:
        inputs = super()._apply_hf_processor_main(mm_items, hf_kwargs)
        for modality in MODALITIES:
            if PARTS[modality] in inputs:
                inputs[field(modality)] = self._told(modality, inputs)
        return inputs

    def _told(self, modality: str, inputs: Mapping[str, Any]) -> Tensor:
        """[items, 3] see `field`."""
        apart, parts = self.info.apart, inputs[PARTS[modality]].flatten().tolist()
        counts = apart.counts(modality, dict(inputs), parts)
        seeds = [0] * len(parts)
        if apart.draws:
            pixels = inputs[apart.adapter.pixels[modality]]
            seeds = [_seed(self.info.asked.seed, own) for own in _pixels_of_items(pixels, parts)]
        return torch.tensor([[*count, seed] for count, seed in zip(counts, seeds, strict=True)], dtype=torch.long)

    def _get_mm_fields_config(self, hf_inputs: Any, hf_processor_mm_kwargs: Mapping[str, object]) -> Any:
        told = {key: hf_inputs.pop(key) for key in map(field, MODALITIES) if key in hf_inputs}
        fields = dict(super()._get_mm_fields_config(hf_inputs, hf_processor_mm_kwargs))
        hf_inputs.update(told)
        for modality in MODALITIES:
            if field(modality) in told:
                fields[field(modality)] = MultiModalFieldConfig.batched(modality, keep_on_cpu=True)
        return fields

    def _get_prompt_updates(
        self, mm_items: Any, hf_processor_mm_kwargs: Mapping[str, object], out_mm_kwargs: Any
    ) -> Any:
        told = {
            modality: [item[field(modality)].data.tolist() for item in items]
            for modality, items in out_mm_kwargs.items()
        }
        updates = super()._get_prompt_updates(mm_items, hf_processor_mm_kwargs, out_mm_kwargs)
        return [self._shorter(update, told[update.modality]) for update in updates]

    def _shorter(self, update: PromptReplacement, told: Sequence[Sequence[int]]) -> PromptReplacement:
        def replacement(item: int) -> PromptUpdateDetails[Any]:
            full = update.replacement(item)  # type: ignore[operator]
            whole, kept, _ = told[item]
            ids = torch.tensor(full.full)
            token = int(ids.mode().values)  # as vLLM finds the token that holds embeddings
            places = (ids == token).nonzero().squeeze(1)
            if len(places) != whole:
                raise RuntimeError(f"The processor wrote {len(places)} placeholders for {whole} visual tokens")
            if len(places) > 1 and int(places.diff().max()) > 1:
                raise RuntimeError("The placeholders of one item stand apart, and vlmprune prunes those in one piece")
            stay = torch.ones(len(ids), dtype=torch.bool)
            stay[places[kept:]] = False
            return PromptUpdateDetails.select_token_id(ids[stay].tolist(), token)

        return PromptReplacement(modality=update.modality, target=update.target, replacement=replacement)


def _seed(seed: int, pixels: Tensor) -> int:
    """A seed for one item: the same in any prompt, as its tokens are cached for all of them."""
    content = zlib.crc32(pixels.contiguous().float().numpy().tobytes())
    return (seed * 1_000_003 + content) % (1 << 63)


def _pixels_of_items(pixels: Any, parts: Sequence[int]) -> list[Tensor]:
    if len(pixels) == len(parts):
        return list(pixels)
    return list(torch.split(pixels, list(parts)))
