"""vLLM's greedy tokens are transformers' under `vlmprune.prune`, also with cached prefixes and prompts cut in parts."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from vlmprune.core.errors import UserError
from vlmprune.serve.vllm.asked import Asked
from vlmprune.serve.wanted import Wanted

from .conftest import Engine, Prompt, Reference

PENALTY = 1.5
PARTS = {"max_num_batched_tokens": 48}  # prompts are longer, and images are cut in two
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llava-features": ("llava", "divprune:0.25", {}),
    "llava-attention": ("llava", "vispruner:0.25", PARTS),
    "llava-merging": ("llava", "visionzip:0.3", {}),
    "llava_next-features": ("llava_next", "divprune:0.5", PARTS),
    "llava_next-attention": ("llava_next", "vispruner:0.5", {}),
    "llava_next-merging": ("llava_next", "visionzip:0.5", {}),
    "internvl-features": ("internvl", "divprune:0.5", PARTS),
    "internvl-attention": ("internvl", "vispruner:0.5", {}),
    "internvl-merging": ("internvl", "visionzip:0.5", {}),
    "qwen2_5_vl-features": ("qwen2_5_vl", "divprune:0.25", PARTS),
    "qwen2_5_vl-attention": ("qwen2_5_vl", "vispruner:0.25", {}),
    "qwen2_5_vl-merging": ("qwen2_5_vl", "visionzip:0.3", {}),
    "qwen2_vl-features": ("qwen2_vl", "divprune:0.25", PARTS),
    "qwen2_vl-attention": ("qwen2_vl", "vispruner:0.25", {}),
    "qwen2_vl-merging": ("qwen2_vl", "visionzip:0.3", PARTS),
    "qwen3_vl-features": ("qwen3_vl", "divprune:0.25", PARTS),
    "qwen3_vl-attention": ("qwen3_vl", "vispruner:0.25", {}),
    "qwen3_vl-merging": ("qwen3_vl", "visionzip:0.3", PARTS),
}


@pytest.mark.parametrize("name", CASES)
def test_tokens_are_those_of_transformers(name: str, engine: Engine, reference: Reference) -> None:
    model, recipe, given = CASES[name]
    first, again = engine(model, [recipe], rounds=2, **given)
    assert [reply.tokens for reply in first] == [reply.tokens for reply in again] == reference(model, recipe)
    assert all(reply.cached >= 32 for reply in again), "the second round must find its prompts in the cache"
    assert len({tuple(reply.tokens) for reply in first}) > 1, "replies that are all the same prove nothing"


@pytest.mark.parametrize("model", ["llava", "qwen2_5_vl"])
def test_prompts_have_budgets_of_their_own(model: str, engine: Engine, reference: Reference) -> None:
    """The same prompts at once under several budgets, then again, as they were cached."""
    keeps = ("0.5", None, "20", "1.0")
    first, again = engine(model, ["vispruner:0.25"], rounds=2, keeps=keeps)
    due = [tokens for keep in keeps for tokens in reference(model, f"vispruner:{keep or 0.25}")]
    assert [reply.tokens for reply in first] == [reply.tokens for reply in again] == due
    assert len({reply.prompt for reply in first}) >= len(keeps)


def test_what_is_not_a_budget_of_a_prompt() -> None:
    from vlmprune.serve.vllm.processor import PrunedProcessingInfo

    def parted(allowed: bool, **options: Any) -> Any:
        info: Any = SimpleNamespace(asked=Asked("divprune:0.25", request_keep=allowed), reads=False)
        return PrunedProcessingInfo.parted(info, options)

    assert parted(True, vlmprune_keep="1.0", size=3) == (Wanted(keep=1.0), {"size": 3})
    assert parted(False, size=3) == (Wanted(), {"size": 3})
    for options, sentence in (
        ((False, "0.5"), "takes no vlmprune_keep"), ((True, 0.5), "in words, as '0.5'"),
        ((True, "2.0"), "is not a budget"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=sentence):
            parted(options[0], vlmprune_keep=options[1])


def test_every_token_is_what_vllm_says_without_the_plugin(engine: Engine) -> None:
    """A budget of all tokens, on the model with M-RoPE, whose positions the plugin writes itself."""
    [pruned] = engine("qwen2_5_vl", ["divprune:1.0"])
    [native] = engine("qwen2_5_vl", [], model_impl="transformers")
    assert [(reply.tokens, reply.prompt) for reply in pruned] == [(reply.tokens, reply.prompt) for reply in native]


@pytest.mark.parametrize("model", ["usual_llava", "usual_qwen2_5_vl", "qwen3_vl"])
def test_every_token_is_what_vllms_own_model_says(model: str, engine: Engine) -> None:
    """Another implementation of encoder, projector and LLM, without transformers."""
    [pruned] = engine(model, ["divprune:1.0"])
    [own] = engine(model, [], model_impl="vllm")
    assert [(reply.tokens, reply.prompt) for reply in pruned] == [(reply.tokens, reply.prompt) for reply in own]
    assert len({tuple(reply.tokens) for reply in own}) > 1, "replies that are all the same prove nothing"


VIDEOS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "qwen2_5_vl-features": ("qwen2_5_vl", "divprune:0.25", PARTS),
    "qwen2_5_vl-merging": ("qwen2_5_vl", "visionzip:0.3", {}),
    "qwen2_vl-attention": ("qwen2_vl", "vispruner:0.25", PARTS),
    "qwen2_vl-frames": ("qwen2_vl", "evs:0.25", {}),
    "qwen3_vl-features": ("qwen3_vl", "divprune:0.25", PARTS),
    "qwen3_vl-attention": ("qwen3_vl", "vispruner:0.25", {}),
    "qwen3_vl-merging": ("qwen3_vl", "visionzip:0.3", PARTS),
    "qwen3_vl-by-frame": ("qwen3_vl", "divprune:3/frame", {}),
}


@pytest.mark.parametrize("name", VIDEOS)
def test_tokens_of_videos_are_those_of_transformers(
    name: str, engine: Engine, reference: Reference, clips: list[Prompt]
) -> None:
    model, recipe, given = VIDEOS[name]
    first, again = engine(model, [recipe], asked=clips, rounds=2, **given)
    assert [reply.tokens for reply in first] == [reply.tokens for reply in again] == reference(model, recipe, clips)
    assert all(reply.cached >= 32 for reply in again), "the second round must find its prompts in the cache"


def test_videos_whose_tokens_stand_apart_have_budgets_of_their_own(
    engine: Engine, reference: Reference, clips: list[Prompt]
) -> None:
    keeps = ("0.5", "7", "1.0")
    asked = clips[:2]
    first, again = engine("qwen3_vl", ["visionzip:0.3"], asked=asked, rounds=2, keeps=keeps, **PARTS)
    due = [tokens for keep in keeps for tokens in reference("qwen3_vl", f"visionzip:{keep}", asked)]
    assert [reply.tokens for reply in first] == [reply.tokens for reply in again] == due


def test_words_between_frames_are_words_of_the_prompt(
    engine: Engine, reference: Reference, clips: list[Prompt]
) -> None:
    """A penalty on those that the prompt has goes by its ids."""
    due = reference("qwen3_vl", "divprune:0.25", clips, penalty=PENALTY)
    [replies] = engine("qwen3_vl", ["divprune:0.25"], asked=clips, penalty=PENALTY)
    assert [reply.tokens for reply in replies] == due
    assert due != reference("qwen3_vl", "divprune:0.25", clips)


@pytest.mark.parametrize(
    ("model", "recipe"), [("internvl", "divprune:0.25"), ("qwen2_5_vl", "divprune:0.5/latest+0.1/older")]
)
def test_a_video_is_refused_where_none_was_tested(model: str, recipe: str, engine: Engine, clips: list[Prompt]) -> None:
    with pytest.raises(RuntimeError, match=r"At most 0 video\(s\) may be provided"):
        engine(model, [recipe], asked=clips[:1])


def test_a_method_that_the_plugin_cannot_run_stops_the_engine(engine: Engine) -> None:
    with pytest.raises(RuntimeError, match="fastv prunes inside the LLM"):
        engine("llava", ["fastv@2:0.5"])
