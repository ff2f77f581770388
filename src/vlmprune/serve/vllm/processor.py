"""The half that counts: each image or video gets as many placeholders as tokens will be kept of it."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, lru_cache
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
)
from vllm.multimodal.inputs import MultiModalFieldConfig
from vllm.multimodal.processing import PromptReplacement, PromptUpdateDetails

from vlmprune.core.budget import Keep, parse_keep
from vlmprune.core.errors import UserError
from vlmprune.runtime.apart import Apart, Count
from vlmprune.serve.vllm.ages import KEEPS, AgesProcessor, without_ages
from vlmprune.serve.vllm.asked import Asked, asked_of
from vlmprune.serve.vllm.block import Item, text_in
from vlmprune.serve.vllm.families import VIDEOS, apart_of, on_meta
from vlmprune.serve.vllm.told import FIELDS, Told, as_bytes, as_number, field, query_field, text_field
from vlmprune.serve.wanted import KEEP, LATEST, QUERY, Wanted, check_query

MODALITIES = ("image", "video")
BUDGETS = 64  # of requests, whose recipes are kept
TEXT = 8  # tokens between frames, for each: Qwen3-VL writes <1234.5 seconds> and two marks for every two
REMEMBERED = 1 << 16  # images whose tokens are remembered until their prompt is run


class PrunedProcessingInfo(MultiModalProcessingInfo):
    """What vLLM asks of the model before it has one."""

    @cached_property
    def asked(self) -> Asked:
        return asked_of(self.ctx.model_config)

    @cached_property
    def aparts(self) -> Callable[[Keep | None], Apart]:
        """The recipe on the model, under a request's budget or its own."""
        model_config = self.ctx.model_config
        # vLLM changes the classes of a model that it has loaded, in this process, too: they ask for its config
        config: Any = SimpleNamespace(
            model_config=model_config, compilation_config=SimpleNamespace(mode=CompilationMode.NONE)
        )
        with set_current_vllm_config(config):
            model = on_meta(self.get_hf_config())

        @lru_cache(BUDGETS, typed=True)  # one token and all of them are 1 and 1.0
        def under(keep: Keep | None) -> Apart:
            return apart_of(model, self.asked.under(keep), model_config.uses_mrope)

        return under

    @cached_property
    def reads(self) -> bool:
        """Whether a method compares images with the question, which each prompt that has some must then give."""
        return self.aparts(None).reads

    def parted(self, kwargs: Mapping[str, object]) -> tuple[Wanted, dict[str, object]]:
        """What is for vlmprune among the options that a request gives a processor, and those that are the processor's.

        Raises:
            UserError: the engine does not allow it, or it is not a budget in words, or not a question.
        """
        others = without_ages(kwargs)
        if len(others) < len(kwargs) and self.asked.ages is None:
            raise UserError(f"{self.asked.recipe} has no budget by age: leave out {LATEST} and {KEEPS}.")
        keep, query = others.pop(KEEP, None), others.pop(QUERY, None)
        if query is not None and not self.reads:
            raise UserError(f"No method in {self.asked.recipe} reads the question: leave out {QUERY}.")
        query = check_query(query)
        if keep is None:
            return Wanted(None, query), others
        if not self.asked.takes_keeps:
            raise UserError(f"This engine takes no {KEEP}: overrides(..., request_keep=True) allows it.")
        if not isinstance(keep, str):
            raise UserError(f"{KEEP} must be a budget in words, as '{keep}'.")  # vLLM's key of 1 is that of a share
        return Wanted(parse_keep(keep), query), others

    def check_asked(self, wanted: Wanted) -> None:
        """Raise UserError for a prompt with images that does not say what to compare them with, where methods do."""
        if self.reads and wanted.query is None:
            raise UserError(
                f"{self.asked.recipe} compares images with a question, and this request has none: a chat completion "
                f"gives it as the text of the last message of its user, and a prompt of LLM.generate as {QUERY} among "
                "its mm_processor_kwargs."
            )

    def get_supported_mm_limits(self) -> dict[str, int | None]:
        """No videos where the plugin was not tested with them: vLLM refuses a request that has one.

        Under a budget by age there are none either: vLLM does not tell where they stand among the images.
        """
        limits = super().get_supported_mm_limits()
        takes_videos = self.get_hf_config().model_type in VIDEOS and self.asked.ages is None
        return limits if takes_videos else {**limits, "video": 0}

    def get_max_video_tokens(self, seq_len: int, mm_counts: Mapping[str, int]) -> int:
        """With the text that may stand between the frames, which is handed in with them."""
        most = super().get_max_video_tokens(seq_len, mm_counts)
        return most + TEXT * self.get_num_frames_with_most_features(seq_len, mm_counts)

    @property
    def model_id(self) -> str:
        """Part of the hash of each item, under which its tokens and what follows them are cached."""
        return f"{super().model_id}:{self.asked}"


class Embeds:
    """Which ids of a replacement hold embeddings. vLLM caches it with the item, so it has the item's count, too.

    Args:
        columns: those of the block.
    """

    def __init__(self, columns: slice, count: Count) -> None:
        self._columns, self.count = columns, count

    def __call__(self, ids: list[int]) -> Tensor:
        found = torch.zeros(len(ids), dtype=torch.bool)
        found[self._columns] = True
        return found


class PrunedProcessor(AgesProcessor):
    """transformers' processor, with fewer placeholders.

    Attributes:
        counts: tokens of the latest images, by vLLM's key of each under its budget.
    """

    info: PrunedProcessingInfo

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.counts: dict[str, Count] = {}

    def _unpad_images(self, hf_inputs: Any) -> None:
        """Also take off the tiles that fill an image up to those of another: it is cached, and shown beside others."""
        super()._unpad_images(hf_inputs)
        pixels = hf_inputs.get("pixel_values")
        if pixels is not None and (tiles := self.info.aparts(None).tiles(hf_inputs)) is not None:
            hf_inputs["pixel_values"] = [own[:count] for own, count in zip(pixels, tiles, strict=True)]

    def get_dummy_inputs(self, *args: Any, **kwargs: Any) -> Any:
        """What vLLM runs to see how much memory it takes, with a question where methods read one."""
        made = super().get_dummy_inputs(*args, **kwargs)
        if self.info.reads:
            made.hf_processor_mm_kwargs = {**made.hf_processor_mm_kwargs, QUERY: "?"}
        return made

    def _apply_hf_processor_main(self, mm_items: Any, hf_kwargs: Mapping[str, object]) -> Any:
        wanted, others = self.info.parted(hf_kwargs)
        own: Any = hf_kwargs.get(KEEPS)
        keeps = None if own is None else [parse_keep(keep) for keep in own]
        inputs = super()._apply_hf_processor_main(mm_items, others)
        for modality in MODALITIES:
            if PARTS[modality] in inputs:
                self.info.check_asked(wanted)
                count = len(inputs[PARTS[modality]].flatten())
                inputs[field(modality)] = self._told(modality, inputs, keeps or [wanted.keep] * count)
                inputs[text_field(modality)] = self._texts(modality, inputs)
                inputs[query_field(modality)] = [as_bytes(wanted.query)] * len(inputs[text_field(modality)])
        return inputs

    def _texts(self, modality: str, inputs: Mapping[str, Any]) -> list[Tensor]:
        """[2, t] of each item, as `text_in`."""
        ids, sizes = inputs[f"{modality}_replacement_ids"], inputs[f"{modality}_replacement_sizes"].tolist()
        return [text_in(own.tolist(), self._token(modality)) for own in ids.split(sizes)]

    def _token(self, modality: str) -> int:
        """The placeholder's. vLLM takes the id that an item has most often, which may be one of its text."""
        return self.info.aparts(None).adapter.placeholder_ids[modality]

    def _told(self, modality: str, inputs: Mapping[str, Any], keeps: Sequence[Keep | None]) -> Tensor:
        """[items, 4] each row as `Told`, of items with these budgets."""
        apart, parts = self.info.aparts(keeps[0]), inputs[PARTS[modality]].flatten().tolist()
        numbers = [as_number(keep) for keep in keeps]
        counts = {
            number: self.info.aparts(keep).counts(modality, dict(inputs), parts)
            for number, keep in dict(zip(numbers, keeps, strict=True)).items()
        }
        seeds = [0] * len(parts)
        if apart.draws:
            pixels = inputs[apart.adapter.pixels[modality]]
            seeds = [_seed(self.info.asked.seed, own) for own in pixels_of_items(pixels, parts)]
        told = enumerate(zip(numbers, seeds, strict=True))
        rows = [Told(*counts[number][item], seed, number) for item, (number, seed) in told]
        return torch.tensor(rows, dtype=torch.long)

    def _get_mm_fields_config(self, hf_inputs: Any, hf_processor_mm_kwargs: Mapping[str, object]) -> Any:
        ours = {name(modality): modality for modality in MODALITIES for name in FIELDS}
        told = {key: hf_inputs.pop(key) for key in ours if key in hf_inputs}
        fields = dict(super()._get_mm_fields_config(hf_inputs, hf_processor_mm_kwargs))
        hf_inputs.update(told)
        return fields | {key: MultiModalFieldConfig.batched(ours[key], keep_on_cpu=True) for key in told}

    def _get_prompt_updates(
        self, mm_items: Any, hf_processor_mm_kwargs: Mapping[str, object], out_mm_kwargs: Any
    ) -> Any:
        told = {
            modality: [Item.among(fields, modality) for fields in items] for modality, items in out_mm_kwargs.items()
        }
        _, others = self.info.parted(hf_processor_mm_kwargs)
        updates = super()._get_prompt_updates(mm_items, others, out_mm_kwargs)
        return [self._shorter(update, told[update.modality]) for update in updates]

    def _maybe_apply_prompt_updates(self, mm_items: Any, mm_res: Any) -> Any:
        for modality, keys in mm_res.hashes.items():
            for key, updates in zip(keys, mm_res.prompt_updates[modality], strict=True):
                self.counts.pop(key, None)  # it is the latest again
                self.counts[key] = updates[0].content.is_embed.count
        while len(self.counts) > REMEMBERED:
            del self.counts[next(iter(self.counts))]
        return super()._maybe_apply_prompt_updates(mm_items, mm_res)

    def _shorter(self, update: PromptReplacement, told: Sequence[Item]) -> PromptReplacement:
        token = self._token(update.modality)

        def replacement(item: int) -> PromptUpdateDetails:
            (whole, kept, *_), between, _ = told[item]
            ids = update.replacement(item).full  # type: ignore[operator]
            if ids.count(token) != whole:
                raise RuntimeError(f"The processor wrote {ids.count(token)} placeholders for {whole} visual tokens")
            text = between.ids.tolist()
            first = ids.index(token)
            block = slice(first, first + kept + len(text))
            shorter = [*ids[:first], *[token] * kept, *text, *ids[first + whole + len(text) :]]
            return PromptUpdateDetails(shorter, Embeds(block, Count(whole, kept)))

        return PromptReplacement(modality=update.modality, target=update.target, replacement=replacement)


def _seed(seed: int, pixels: Tensor) -> int:
    """A seed for one item: the same in any prompt, as its tokens are cached for all of them."""
    content = zlib.crc32(pixels.contiguous().float().numpy().tobytes())
    return (seed * 1_000_003 + content) % (1 << 63)


def pixels_of_items(pixels: Any, parts: Sequence[int]) -> list[Tensor]:
    """The rows of pixels of each image: as many as its parts, or one that holds them all."""
    if isinstance(pixels, Tensor) and len(pixels) == sum(parts):
        return list(torch.split(pixels, list(parts)))
    if len(pixels) != len(parts):
        raise RuntimeError(f"{len(pixels)} rows of pixels cannot be told apart as images of {list(parts)}")
    return [own[None] for own in pixels]
