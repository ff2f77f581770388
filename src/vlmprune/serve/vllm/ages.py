"""Budgets by the age of an image in its conversation.

Tokens never change under the key by which vLLM caches them, so an image has one key as one of the latest, and another
one as an older one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from vllm.model_executor.models.transformers.multimodal import MultiModalProcessor
from vllm.multimodal.hasher import MultiModalHasher

from vlmprune.core.budget import ByAge
from vlmprune.core.errors import UserError
from vlmprune.serve.wanted import KEEP, LATEST

KEEPS = "vlmprune_keeps"  # from one step of a processor to the next: the budgets of images that go by age


def without_ages(kwargs: Mapping[str, object]) -> dict[str, object]:
    """The options of a request without those that say how old its images are."""
    return {name: value for name, value in kwargs.items() if name not in (LATEST, KEEPS)}


def keeps_by_age(ages: ByAge | None, count: int, kwargs: Mapping[str, object]) -> list[str] | None:
    """The budget of each image of a request in words; None where they do not go by age.

    Args:
        count: of the request's images. There are no videos (`PrunedProcessingInfo.get_supported_mm_limits`).
        kwargs: the request's options: a budget of its own holds for all its images.

    Raises:
        UserError: the request names no number of latest images.
    """
    if ages is None or kwargs.get(KEEP) is not None:
        return None
    latest = str(kwargs.get(LATEST, ages.images))
    if not (latest.isdecimal() and int(latest) > 0):
        raise UserError(f"{LATEST} must be a number of images, not {latest!r}.")
    return [str(keep) for keep in replace(ages, images=int(latest)).in_a_row(count)]


class AgesProcessor(MultiModalProcessor):
    """vLLM's processor for transformers' models, with `KEEPS` where it reads images whose budgets go by age."""

    def _keeps(self, inputs: Any) -> list[str] | None:
        count = inputs.mm_data_items.get_all_counts().get("image", 0)
        return keeps_by_age(self.info.asked.ages, count, inputs.hf_processor_mm_kwargs)

    def _get_mm_hashes(self, inputs: Any) -> Any:
        keeps, options = self._keeps(inputs), without_ages(inputs.hf_processor_mm_kwargs)
        hashes = super()._get_mm_hashes(replace(inputs, hf_processor_mm_kwargs=options))
        if keeps is None or "image" not in hashes:
            return hashes
        way = self.info.ctx.get_mm_config().mm_hasher_algorithm
        pairs = zip(hashes["image"], keeps, strict=True)
        return {**hashes, "image": [MultiModalHasher.hash_kwargs(way, mm_hash=own, keep=keep) for own, keep in pairs]}

    def _get_cache_missing_processor_kwargs(self, inputs: Any, mm_is_cached: Any) -> Mapping[str, object]:
        """With the budgets of the images that are not cached."""
        keeps, given = self._keeps(inputs), super()._get_cache_missing_processor_kwargs(inputs, mm_is_cached)
        if keeps is None or "image" not in mm_is_cached:
            return given
        return {**given, KEEPS: [keep for keep, cached in zip(keeps, mm_is_cached["image"], strict=True) if not cached]}

    def _apply_hf_processor(self, inputs: Any, timing_ctx: Any) -> Any:
        """With the budgets of all images, as nothing is cached."""
        if (keeps := self._keeps(inputs)) is not None:
            inputs = replace(inputs, hf_processor_mm_kwargs={**inputs.hf_processor_mm_kwargs, KEEPS: keeps})
        return super()._apply_hf_processor(inputs, timing_ctx)
