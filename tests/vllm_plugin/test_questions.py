"""Methods that read the question in vLLM: an image is encoded, and cached, for one question."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vlmprune.assets import load_embedded
from vlmprune.core.errors import UserError
from vlmprune.serve.vllm.asked import Asked
from vlmprune.serve.wanted import Wanted

from .conftest import QUERIES, TOWER, Engine, Prompt, Reference, asking
from .server import ask, body_of, compared, metric, post, refusal, served, text_of

PARTS = {"max_num_batched_tokens": 48}  # prompts are longer, and images are cut in two
CASES: dict[str, tuple[str, str, str | None, dict[str, Any]]] = {
    "by CLIP": ("llava", "trim:0.25", TOWER, PARTS),
    "by words": ("qwen2_5_vl", "mmtok:0.25", None, {}),
    "of tiles": ("llava_next", "trim:0.5", None, PARTS),
}


@pytest.mark.parametrize("name", CASES)
def test_tokens_are_those_of_transformers(
    name: str, engine: Engine, reference: Reference, prompts: list[Prompt]
) -> None:
    model, recipe, tower, given = CASES[name]
    asked = asking(prompts)
    first, again = engine(model, [recipe], asked=asked, rounds=2, text_tower=tower, **given)
    due = reference(model, recipe, asked, text_tower=tower)
    assert [reply.tokens for reply in first] == [reply.tokens for reply in again] == due
    assert all(reply.cached >= 32 for reply in again), "the second round must find its prompts in the cache"
    assert any(one != other for one, other in zip(due[::2], due[1::2], strict=True)), "the questions prove nothing"


def test_tokens_of_videos_are_those_of_transformers(engine: Engine, reference: Reference, clips: list[Prompt]) -> None:
    asked = asking(clips)
    [replies] = engine("qwen3_vl", ["cdpruner:0.25"], asked=asked, **PARTS)
    assert [reply.tokens for reply in replies] == reference("qwen3_vl", "cdpruner:0.25", asked)


def test_what_is_not_the_question_of_a_prompt() -> None:
    from vlmprune.serve.vllm.processor import PrunedProcessingInfo

    def info(reads: bool) -> Any:
        return SimpleNamespace(asked=Asked("trim:0.25" if reads else "divprune:0.25"), reads=reads)

    def parted(reads: bool, **options: Any) -> Any:
        return PrunedProcessingInfo.parted(info(reads), options)

    assert parted(True, vlmprune_query="why?", size=3) == (Wanted(query="why?"), {"size": 3})
    for reads, query, sentence in (
        (False, "why?", r"No method in divprune:0\.25 reads the question: leave out vlmprune_query"),
        (True, 7, "must be the text that images are compared with, not 7"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=sentence):
            parted(reads, vlmprune_query=query)
    PrunedProcessingInfo.check_asked(info(False), Wanted())
    with pytest.raises(UserError, match="compares images with a question, and this request has none"):
        PrunedProcessingInfo.check_asked(info(True), Wanted())


def test_a_prompt_without_a_question_is_refused(engine: Engine, prompts: list[Prompt]) -> None:
    with pytest.raises(RuntimeError, match=r"trim:0\.25 compares images with a question, and this request has none"):
        engine("llava", ["trim:0.25"], asked=prompts[:1])


# ---------------------------------------------------------------- a server


@pytest.fixture(scope="module")
def server(variables: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    ours = ["--method", "trim", "--keep", "0.25", "--allow-request-query", "--canary", "1"]
    with served("llava", variables, tmp_path_factory.mktemp("questions"), ours, ["--max-num-seqs", "4"]) as at:
        yield at


@pytest.fixture(scope="module")
def picture(pictures: tuple[str, str]) -> bytes:
    return Path(pictures[0]).read_bytes()


def test_a_server_takes_the_question_from_the_conversation(
    server: str, picture: bytes, prompts: list[Prompt], reference: Reference
) -> None:
    """What the user says last, or what the request sets; the canary asks the unpruned model the same."""
    assert metric(server, "selection_seconds_total") == 0
    decode: Any = load_embedded("llava")[1].tokenizer
    own = replace(prompts[0], query=prompts[0].question)
    cases = [own, *(replace(own, query=query) for query in QUERIES)]
    due = reference("llava", "trim:0.25", cases, text_tower=TOWER)
    said = [ask(server, body_of(own.question, [picture]))]
    said += [ask(server, body_of(own.question, [picture], vlmprune_query=query)) for query in QUERIES]
    texts = [text_of(reply) for reply in said]
    assert texts == [decode.decode(tokens, skip_special_tokens=True).strip() for tokens in due]
    assert len({*texts}) > 1, "the questions prove nothing"
    assert all(reply["usage"]["vlmprune"] == {"visual_tokens": 196, "kept": 49} for reply in said)
    assert compared(server, 3)["failures_total"] == 0
    assert metric(server, "selection_seconds_total") > 0


def test_a_server_refuses_images_without_a_question(server: str, picture: bytes) -> None:
    body = body_of("", [picture])
    status, message = refusal(server, body)
    assert status == 400 and "compares images with a question, and this request has none" in message
    image = body["messages"][0]["content"][0]["image_url"]["url"]
    asked = {"model": "llava", "input": [{"role": "user", "content": [{"type": "input_image", "image_url": image}]}]}
    status, message = post(server, "/v1/responses", asked)
    assert status == 400 and "compares images with a question" in message
    assert text_of(ask(server, body_of("what is this ?", []))), "without images none is needed"


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no text": ({"vlmprune_query": 3}, "must be the text that images are compared with, not 3"),
    "half a character": ({"vlmprune_query": "\ud800"}, "must be the text that images are compared with"),
    "too long": ({"vlmprune_query": "x" * 20_000}, "at most 16384 characters, and this one has 20000"),
    "past the server": ({"mm_processor_kwargs": {"vlmprune_query": "x"}}, "a request can set vlmprune_query alone"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_server_refuses_a_question_that_is_none(name: str, server: str, picture: bytes) -> None:
    more, sentence = WRONG[name]
    status, message = refusal(server, body_of("what is this ?", [picture], **more))
    assert status == 400 and sentence in message


@pytest.mark.parametrize("said", ["half \ud800 a character", "why " * 600])
def test_a_server_lives_through_what_a_user_may_say(said: str, server: str, picture: bytes) -> None:
    status, _ = refusal(server, body_of(said, [picture]))
    assert status == 400
    assert text_of(ask(server, body_of("what is this ?", [picture])))
