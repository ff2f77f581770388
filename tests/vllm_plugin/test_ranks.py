"""One model shared by two processes: each has the whole encoder, and both go on with the choice of the first."""

from __future__ import annotations

import pytest
from torch import nn

from vlmprune.serve.vllm.families import TESTED
from vlmprune.serve.vllm.ranks import is_shared

from .conftest import TOWER, Engine, Prompt, Reference, asking

SHARED = {"tensor_parallel_size": 2}
CASES = {  # all read attention, and some merge
    "llava": "visionzip:0.3",
    "llava_next": "visionzip:0.5",
    "internvl": "vispruner:0.5",
    "qwen2_vl": "vispruner:0.25",
    "qwen2_5_vl": "vispruner:0.25",
    "qwen3_vl": "visionzip:0.3",
}


def test_every_family_is_tested() -> None:
    assert {*TESTED} == {*CASES}


@pytest.mark.parametrize("name", ["ColumnParallelLinear", "ReplicatedLinear"])
def test_a_copied_layer_is_not_gathered(name: str) -> None:
    """Both kinds know how many GPUs there are."""
    from vllm.model_executor.layers import linear

    layer = getattr(linear, name).__new__(getattr(linear, name))
    nn.Module.__init__(layer)
    layer.tp_size = 2
    assert is_shared(nn.Sequential(layer)) is (name == "ColumnParallelLinear")


@pytest.mark.parametrize("model", CASES)
def test_tokens_are_those_of_transformers_on_two_ranks(model: str, engine: Engine, reference: Reference) -> None:
    first, again = engine(model, [CASES[model]], rounds=2, **SHARED)
    assert [reply.tokens for reply in first] == [reply.tokens for reply in again] == reference(model, CASES[model])
    assert len({tuple(reply.tokens) for reply in first}) > 1, "replies that are all the same prove nothing"


@pytest.mark.parametrize(
    ("model", "recipe", "tower"), [("llava", "trim:0.25", TOWER), ("qwen2_5_vl", "mmtok:0.25", None)]
)
def test_questions_on_two_ranks(
    model: str, recipe: str, tower: str | None, engine: Engine, reference: Reference, prompts: list[Prompt]
) -> None:
    """Each rank has the text tower, and embeds words of a vocabulary that the two share."""
    asked = asking(prompts)
    [replies] = engine(model, [recipe], asked=asked, text_tower=tower, **SHARED)
    assert [reply.tokens for reply in replies] == reference(model, recipe, asked, text_tower=tower)


def test_videos_on_two_ranks(engine: Engine, reference: Reference, clips: list[Prompt]) -> None:
    [replies] = engine("qwen2_vl", ["vispruner:0.25"], asked=clips, max_num_batched_tokens=48, **SHARED)
    assert [reply.tokens for reply in replies] == reference("qwen2_vl", "vispruner:0.25", clips)


def test_videos_whose_tokens_stand_apart_on_two_ranks(
    engine: Engine, reference: Reference, clips: list[Prompt]
) -> None:
    """Each rank embeds the text between the frames, of a vocabulary that the two share."""
    [replies] = engine("qwen3_vl", ["visionzip:0.3"], asked=clips, **SHARED)
    assert [reply.tokens for reply in replies] == reference("qwen3_vl", "visionzip:0.3", clips)
