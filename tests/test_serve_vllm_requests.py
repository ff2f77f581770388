"""What requests to vLLM may say: budgets and questions, on their way to the engine, and what reads the questions."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from harness import built
from harness_text import clip_model

import vlmprune
from vlmprune.core.errors import UserError
from vlmprune.serve.vllm.asked import Asked, asked_in
from vlmprune.serve.vllm.canary import whole
from vlmprune.serve.vllm.launch import vllm_command
from vlmprune.serve.vllm.requests import CHAT, rewritten
from vlmprune.serve.vllm.told import as_bytes, as_keep, as_number, as_query
from vlmprune.serve.wanted import check_query

# ---------------------------------------------------------------- budgets of requests


@pytest.mark.parametrize("keep", [None, 0.1, 1.0, 5e-324, 1, 64, 1 << 40])
def test_a_budget_survives_as_a_number(keep: float | int | None) -> None:
    back = as_keep(int(torch.tensor(as_number(keep))))
    assert back == keep and type(back) is type(keep)
    assert as_keep(as_number(1 << 80)) == (1 << 62) - 1, "more than any image has"


PLAIN = Asked("divprune:0.25", request_keep=True)
READING = Asked("trim:0.25", reads=True)
AGED = Asked("divprune:0.5/latest+0.1/older")


def sent(**body: object) -> bytes:
    return json.dumps({"model": "llava", **body}).encode()


@pytest.mark.parametrize("keep", [0.25, 1, 1.0])
def test_a_requests_budget_goes_to_the_processor(keep: float) -> None:
    body = json.loads(rewritten(sent(vlmprune_keep=keep), CHAT, PLAIN))
    assert body == {"model": "llava", "mm_processor_kwargs": {"vlmprune_keep": str(keep)}}


@pytest.mark.parametrize("body", [sent(), b"no JSON", b"[1]", b"[" * 100_000, b"\xff"])
def test_what_is_not_ours_stays_as_it_is(body: bytes) -> None:
    for server in (PLAIN, *([READING] if body != sent() else [])):
        assert rewritten(body, CHAT, server) == body


WRONG_BODIES: dict[str, tuple[bytes, bool, str, str]] = {
    "not allowed": (sent(vlmprune_keep=0.5), False, CHAT, "takes no vlmprune_keep"),
    "not a budget": (sent(vlmprune_keep="half"), True, CHAT, "must be a share above 0"),
    "elsewhere": (sent(vlmprune_keep=0.5), True, "/v1/responses", "is for /v1/chat/completions alone"),
    "other options": (sent(mm_processor_kwargs={"size": 9}), True, "/tokenize", "takes no mm_processor_kwargs"),
    "in disguise": (b'{"mm_processor_\\u006bwargs": {"size": 9}}', True, CHAT, "takes no mm_processor_kwargs"),
    "for the canary alone": (sent(mm_processor_kwargs={"vlmprune_keep": "1.0"}), False, CHAT, "leave it out"),
    "a question": (sent(vlmprune_query="a car"), True, CHAT, "takes no vlmprune_query"),
}


@pytest.mark.parametrize("name", WRONG_BODIES)
def test_a_request_that_is_refused(name: str) -> None:
    body, allowed, path, sentence = WRONG_BODIES[name]
    with pytest.raises(UserError, match=sentence):
        rewritten(body, path, replace(PLAIN, request_keep=allowed, canary=0.5))


# ---------------------------------------------------------------- questions


def told(server: Asked, **body: object) -> object:
    return json.loads(rewritten(sent(**body), CHAT, server)).get("mm_processor_kwargs")


def of_user(content: object) -> dict[str, object]:
    return {"role": "user", "content": content}


TEXT = [
    {"type": "text", "text": "what is"},
    {"type": "image_url", "image_url": {"url": "x"}},
    {"type": "text", "text": "this"},
]
CONVERSATIONS: dict[str, tuple[list[object], str | None]] = {
    "a string": ([of_user(" why? ")], "why?"),
    "around a picture": ([of_user(TEXT)], "what is this"),
    "the last one": ([of_user("first"), {"role": "assistant", "content": "no"}, of_user("second")], "second"),
    "before an answer": ([of_user("first"), {"role": "assistant", "content": "no"}], "first"),
    "nothing said": ([of_user("first"), of_user(TEXT[1:2])], None),
    "no user": ([{"role": "system", "content": "be short"}], None),
    "parts of no kind": ([of_user([{"text": "a"}, {"type": ["text"]}, "b", {"type": "text", "text": "c"}])], "c"),
    "no messages": ("hello", None),  # type: ignore[dict-item]
}


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_images_are_compared_with_what_the_user_said_last(name: str) -> None:
    messages, said = CONVERSATIONS[name]
    assert told(READING, messages=messages) == (None if said is None else {"vlmprune_query": said})
    assert told(PLAIN, messages=messages) is None, "no method reads it"


def test_a_request_may_ask_something_else_of_its_images() -> None:
    server = replace(READING, request_query=True, request_keep=True)
    body = {"messages": [of_user("why?")], "vlmprune_query": "a car"}
    assert told(server, **body) == {"vlmprune_query": "a car"}
    assert told(server, **body, vlmprune_keep=0.5) == {"vlmprune_keep": "0.5", "vlmprune_query": "a car"}
    with pytest.raises(UserError, match="takes no vlmprune_query"):
        told(READING, **body)
    with pytest.raises(UserError, match="a request can set vlmprune_keep and vlmprune_query alone"):
        told(server, **body, mm_processor_kwargs={"vlmprune_query": "a dog"})
    with pytest.raises(UserError, match="vlmprune_query is for /v1/chat/completions alone"):
        rewritten(sent(**body), "/v1/responses", server)


def test_the_canary_asks_the_same_of_all_tokens() -> None:
    assert whole({"n": 1, "mm_processor_kwargs": {"vlmprune_query": "why?", "vlmprune_keep": "0.5"}}) == {
        "n": 1, "mm_processor_kwargs": {"vlmprune_query": "why?", "vlmprune_keep": "1.0"}
    }  # fmt: skip
    assert whole({"n": 1}) == {"n": 1, "mm_processor_kwargs": {"vlmprune_keep": "1.0"}}


@pytest.mark.parametrize("query", [None, "what color is it?", "wie groß ist die 猫 🐈?"])
def test_a_question_survives_as_numbers(query: str | None) -> None:
    written = as_bytes(query)
    assert written.dtype == torch.uint8 and as_query(written) == query


@pytest.mark.parametrize(("query", "sentence"), [
    ("", "must be the text"), (7, "must be the text"), ("\ud800", "must be the text"),
    ("why? " * 4000, "a question of at most 16384 characters, and this one has 20000"),
])  # fmt: skip
def test_a_question_that_is_refused(query: object, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        check_query(query)


# ---------------------------------------------------------------- ages of images


IMAGE = {"type": "image_url", "image_url": {"url": "x"}}
LATEST: dict[str, tuple[object, int]] = {
    "none": ([of_user("why?")], 1),
    "one of two": ([of_user([IMAGE]), of_user([IMAGE])], 1),
    "two together, before words": ([of_user([IMAGE]), of_user([IMAGE, IMAGE]), of_user("why?")], 2),
    "of a tool": ([of_user([IMAGE]), {"role": "tool", "content": [IMAGE, IMAGE, IMAGE]}], 3),
    "no messages": ("hello", 1),
}


@pytest.mark.parametrize("name", LATEST)
def test_the_latest_images_are_those_of_the_last_message_that_has_any(name: str) -> None:
    messages, count = LATEST[name]
    assert told(AGED, messages=messages) == {"vlmprune_latest": str(count)}
    assert told(PLAIN, messages=messages) is None


def test_a_request_says_nothing_of_ages_itself() -> None:
    for body in ({"mm_processor_kwargs": {"vlmprune_latest": "3"}}, {"mm_processor_kwargs": {"vlmprune_keeps": []}}):
        with pytest.raises(UserError, match="takes no mm_processor_kwargs"):
            told(AGED, messages=[], **body)


# ---------------------------------------------------------------- text towers


def test_a_text_tower_tells_cached_images_apart(tmp_path: Path) -> None:
    clip_model(112, hidden_size=128, num_hidden_layers=5, patch_size=8).save_pretrained(tmp_path / "clip")
    tower, recipe = str(tmp_path / "clip"), vlmprune.recipe("trim:0.5")
    keys = [
        str(asked_in(json.loads(overrides_of(vllm_command("llava", recipe, text_tower=one))))) for one in (None, tower)
    ]
    assert keys[0] != keys[1] and keys[1].endswith(tower)


def overrides_of(command: list[str]) -> str:
    return command[command.index("--hf-overrides") + 1]


WRONG_TOWERS: dict[str, tuple[str, Any, str]] = {
    "of another model": ("llava", clip_model, "belongs to another vision tower: its hidden_size is 32"),
    "of no CLIP": ("qwen2_5_vl", clip_model, "the vision tower of qwen2_5_vl is not CLIP's"),
    "no tower": ("llava", lambda: built("llava"), "is a llava model, not a CLIP model"),
}


@pytest.mark.parametrize("name", WRONG_TOWERS)
def test_a_wrong_text_tower_is_refused_before_the_engine_starts(name: str, tmp_path: Path) -> None:
    model, make, sentence = WRONG_TOWERS[name]
    make().config.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=sentence):
        vllm_command(model, vlmprune.recipe("trim:0.5"), text_tower=str(tmp_path))
