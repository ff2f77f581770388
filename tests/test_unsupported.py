"""What docs/runtime.md lists as unsupported is refused in a sentence: a test for each item of that list."""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from harness import built, generate, inputs_of
from harness_embeddings import merged
from versions import behind, cache_of

import vlmprune
from vlmprune import UserError
from vlmprune.runtime.session import CONTINUOUS

PAGE = Path(__file__).parent.parent / "docs" / "runtime.md"
ONE: list[list[int | None]] = [[0]]


def listed() -> list[str]:
    part = PAGE.read_text(encoding="utf-8").split("## What is not supported")[1].split("Each of these")[0]
    return [re.sub(r"\s+", " ", title) for title in re.findall(r"^- \*\*(.+?)\*\*", part, re.M | re.S)]


def labels() -> None:
    inputs = inputs_of("llava", ONE)
    with vlmprune.prune(built("llava"), "divprune:0.3"):
        built("llava")(**inputs, labels=inputs["input_ids"])


def chunks() -> None:
    with vlmprune.prune(built("llava"), "divprune:0.3"):
        built("llava").generate(**inputs_of("llava", ONE), prefill_chunk_size=4)


def drafts_from_states() -> None:
    class Drafting:
        requires_model_outputs = True
        model_kwargs_overrides: dict[str, Any] = {}

        def get_candidates(self, input_ids: Any, **kwargs: Any) -> Any:
            return input_ids, None

        def update_candidate_strategy(self, *args: Any) -> None:
            pass

    model = built("llava")
    model.__dict__["_get_candidate_generator"] = lambda **kwargs: Drafting()
    try:
        with vlmprune.prune(model, "divprune:0.3"):
            generate(model, inputs_of("llava", ONE), prompt_lookup_num_tokens=2)
    finally:
        del model.__dict__["_get_candidate_generator"]


def outside() -> None:
    with vlmprune.prune(built("llava"), "divprune:0.3"):
        cache = cache_of(built("llava")(**inputs_of("llava", ONE), use_cache=True))
    built("llava")(input_ids=torch.tensor([[5]]), **behind(cache))


def two_blocks() -> None:
    with vlmprune.prune(built("llava"), "divprune:0.3"), vlmprune.prune(built("llava"), "fastv:0.3"):
        pass


def continuous(name: str) -> None:
    with vlmprune.prune(built("llava"), "divprune:0.3"):
        getattr(built("llava"), name)([[5, 6]])


def later_image(family: str) -> None:
    model = built(family)
    first, more = inputs_of(family, ONE), inputs_of(family, [[1]], 50)
    with vlmprune.prune(model, "divprune:0.3"):
        cache = cache_of(model(**first, use_cache=True))
        mask = torch.cat([first["attention_mask"], more["attention_mask"]], dim=1)
        model(**{**more, "attention_mask": mask}, **behind(cache))


def merged_elsewhere() -> None:
    inputs = inputs_of("llava", ONE)
    embeds = merged(built("llava"), inputs)
    with vlmprune.prune(built("llava"), "divprune:0.3"):
        built("llava").generate(input_ids=inputs["input_ids"], inputs_embeds=embeds, max_new_tokens=2)


def other_features() -> None:
    model = copy.deepcopy(built("llava"))
    model.config.vision_feature_layer = [-2, -1]
    with vlmprune.prune(model, "hiprune:0.3"):
        model(**inputs_of("llava", ONE))


def encoded_elsewhere() -> None:
    model, inputs = built("llava"), inputs_of("llava", ONE)
    output = model.model.get_image_features(inputs.pop("pixel_values"), return_dict=True)
    with vlmprune.prune(model, "divprune:0.3"):
        model(**inputs, mm_encoder_outputs={"image": output})


def resized() -> None:
    with vlmprune.prune(built("gemma3"), "downsample:0.3"):
        generate(built("gemma3"), inputs_of("gemma3", ONE))


def recurrent() -> None:
    with vlmprune.prune(built("qwen3_5"), "fastv@1:0.3"):
        generate(built("qwen3_5"), inputs_of("qwen3_5", ONE))


USES: dict[str, list[Callable[[], None]]] = {
    "`labels`": [labels],
    "Chunked prefill": [chunks],
    "Candidates drafted from hidden states": [drafts_from_states],
    "A pruned cache outside a block": [outside],
    "Two blocks on one model": [two_blocks],
    "Continuous batching": [functools.partial(continuous, name) for name in CONTINUOUS],
    "A new image after a cache": [lambda: later_image("paligemma")],
    "Images merged into `inputs_embeds`": [merged_elsewhere],
    "Methods that read the encoder, on LLaVA variants with another tower": [other_features],
    "Images encoded elsewhere": [encoded_elsewhere],
    "Resizing after the processor": [resized],
    "Methods inside a recurrent model": [recurrent],
}


def test_every_item_has_its_test() -> None:
    assert listed() == list(USES)


@pytest.mark.parametrize("use", [use for uses in USES.values() for use in uses])
def test_it_is_refused_in_a_sentence(use: Callable[[], None]) -> None:
    with pytest.raises(UserError) as refusal:
        use()
    assert str(refusal.value).endswith(".") and "\n" not in str(refusal.value)
