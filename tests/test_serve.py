"""`vlmprune serve --engine transformers`: the replies are the library's, and nothing a request says breaks it."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

pytest.importorskip("fastapi")
from harness_serve import (
    QUESTION,
    address,
    by_library,
    chat,
    content,
    leave_in_the_middle,
    loaded,
    metrics,
    post,
    says,
    served,
)

from vlmprune import UserError
from vlmprune.core.recipe import recipe
from vlmprune.serve import handlers
from vlmprune.serve.engine import choose_engine
from vlmprune.serve.recipes import serving_recipe
from vlmprune.serve.serving import Serving
from vlmprune.serve.turn import Standin, Turn, UnseenError
from vlmprune.serve.wanted import Allowed, Wanted, take_wanted

ALLOWED = Allowed(keep=True, query=True)
DATA = "data:image/png;base64,"


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[str, Serving]]:
    with served("trim:0.25", allowed=ALLOWED) as found:
        yield found


@pytest.fixture(scope="module")
def closed() -> Iterator[str]:
    """A server that takes no fields of its own."""
    with served("divprune:0.25") as (url, _):
        yield url


def test_every_way_to_ask_gives_the_librarys_reply(server: tuple[str, Serving]) -> None:
    url, _ = server
    due, report = by_library("trim:0.25", [1])
    usage = {"visual_tokens": report.tokens[0][0], "kept": report.tokens[0][1]}
    assert 0 < usage["kept"] < usage["visual_tokens"]
    status, whole = post(url, chat(says(1, QUESTION)))
    assert content((status, whole)) == due and whole["usage"]["vlmprune"] == usage and whole["model"] == "llava"
    events = post(url, chat(says(1, QUESTION), stream=True))
    assert content(events) == due and events[1][-1]["usage"]["vlmprune"] == usage
    parts = [{"type": "input_image", "image_url": address(1)}, {"type": "input_text", "text": QUESTION}]
    asked = {"model": "llava", "input": [{"role": "user", "content": parts}], "max_output_tokens": 16}
    status, reply = post(url, {**asked, "stream": False}, "/v1/responses")
    assert status == 200 and reply["output"][0]["content"][0]["text"] == due
    assert reply["usage"]["vlmprune"] == usage
    status, flat = post(url, {**asked, "input": parts}, "/v1/responses")
    assert status == 200 and flat[-1]["response"]["output"][0]["content"][0]["text"] == due
    assert flat[-1]["type"] == "response.completed" and flat[-1]["response"]["usage"]["vlmprune"] == usage


def test_requests_at_once_give_what_each_gives_alone(server: tuple[str, Serving]) -> None:
    url, _ = server
    keeps = [0.1, 0.5, 7, 1.0, 0.25, 30, 0.9, 3]
    bodies = [chat(says(at, QUESTION), vlmprune_keep=keep) for at, keep in enumerate(keeps)]
    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(lambda body: post(url, body), bodies))
    tokens = set()
    for at, (keep, reply) in enumerate(zip(keeps, replies, strict=True)):
        due, report = by_library(f"trim:{keep}", [at])
        assert content(reply) == due
        assert reply[1]["usage"]["vlmprune"]["kept"] == report.tokens[0][1]
        tokens.add(report.tokens[0][1])
    assert len(tokens) == 8


def test_a_seed_decides_what_is_drawn_whatever_else_runs(closed: str) -> None:
    drawn = {"generation_config": '{"do_sample": true, "temperature": 4.0, "max_new_tokens": 12}'}
    bodies = [chat(says(1, QUESTION), seed=seed, **drawn) for seed in range(4)]
    for body in bodies:
        del body["temperature"]
    alone = [content(post(closed, body)) for body in bodies]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda body: content(post(closed, body)), bodies))
    assert together == alone and len({*alone}) > 1


def test_a_text_alone_is_answered(closed: str) -> None:
    status, reply = post(closed, chat(says("What is this?")))
    assert status == 200 and reply["usage"]["vlmprune"] == {"visual_tokens": 0, "kept": 0}


def test_the_question_is_the_last_users_or_the_requests(server: tuple[str, Serving]) -> None:
    url, serving = server
    body = chat(says(1, "Is it red?"), says("Yes.", role="assistant"), says(QUESTION))
    turn = Turn(serving, dict(body), "a")
    turn.read(body["messages"])
    assert turn._session is not None and turn._session.question == QUESTION
    turn = Turn(serving, {**body, "vlmprune_query": "a dog"}, "b")
    turn.read(body["messages"])
    assert turn._session is not None and turn._session.question == "a dog"
    status, reply = post(url, {**body, "vlmprune_query": "a dog"})
    assert status == 200 and reply["usage"]["vlmprune"]["kept"] < reply["usage"]["vlmprune"]["visual_tokens"]


def test_budgets_by_age() -> None:
    latest = serving_recipe("divprune", latest=0.5, older=0.1)
    with served(str(latest), allowed=Allowed(keep=True)) as (url, _):
        talk = [says(1, "Look."), says("Yes.", role="assistant"), says(2, 3, "And these?")]
        whole, few, many = 196, round(0.1 * 196), round(0.5 * 196)
        usage = post(url, chat(*talk))[1]["usage"]["vlmprune"]
        assert usage == {"visual_tokens": 3 * whole, "kept": few + 2 * many}
        usage = post(url, chat(*talk, says("Yes.", role="assistant"), says("Sure?")))[1]["usage"]["vlmprune"]
        assert usage["kept"] == few + 2 * many  # they are still the latest
        usage = post(url, chat(*talk, says("Yes.", role="assistant"), says(4, "Now?")))[1]["usage"]["vlmprune"]
        assert usage["kept"] == 3 * few + many
        assert post(url, chat(*talk, vlmprune_keep=5))[1]["usage"]["vlmprune"]["kept"] == 15


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "a path": ({"image": "/etc/hostname"}, "opens no files"),
    "a file": ({"image": "file:///etc/hostname"}, "opens no files"),
    "a relative path": ({"image": "docs/images/scene.png"}, "opens no files"),
    "base64 alone": ({"image": address(1).removeprefix(DATA)}, "opens no files"),
    "no picture": ({"image": f"{DATA}AAAA"}, "no picture that can be read"),
    "half a picture": ({"image": address(1)[:-400]}, "no picture that can be read|not base64"),
    "not base64": ({"image": f"{DATA}@@"}, "not base64"),
    "data of no kind": ({"image": "data:image/png,abc"}, "must be written data:image"),
    "no address": ({"image": None}, "opens no files"),
    "nobody there": ({"image": "http://127.0.0.1:9/a.png"}, "no picture that can be read in http"),
    "too long": ({"text": "red " * 2100}, "tokens before pruning, and the model takes 2048"),
    "another model": ({"model": "gpt"}, "pinned"),
    "an unknown field": ({"vlmprune_foo": 1}, "Unexpected fields"),
    "a template": ({"chat_template_kwargs": {"chat_template": "{{ 1 }}"}}, "chat_template_kwargs may only be"),
    "images of the template": ({"chat_template_kwargs": {"images": "/etc/hostname"}}, "may only be"),
    "chunks": ({"generation_config": '{"prefill_chunk_size": 4}'}, "prefill_chunk_size"),
    "a wrong seed": ({"seed": -1}, "seed must be a whole number"),
    "no messages": ({"messages": None}, "cannot be read|content of a message"),
    "a keep": ({"vlmprune_keep": 0.5}, "takes no vlmprune_keep.*--allow-request-keep"),
    "a query": ({"vlmprune_query": "a dog"}, "takes no vlmprune_query.*--allow-request-query"),
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_refused_in_a_sentence(name: str, stream: bool, closed: str) -> None:
    wrong, sentence = WRONG[name]
    message = says(1, wrong.get("text", QUESTION))
    if "image" in wrong:
        message["content"][0]["image_url"]["url"] = wrong["image"]
    body = chat(message, stream=stream) | {key: value for key, value in wrong.items() if key not in ("image", "text")}
    before = metrics(closed)
    status, reply = post(closed, body)
    if status == 200:  # the stream had begun
        assert stream
        reply = reply[-1]
    assert status in (200, 400, 422) and reply["error"]["type"] == "invalid_request_error"

    assert re.search(sentence, reply["error"]["message"]), reply
    assert "Traceback" not in str(reply)
    raised = {key: value - before[key] for key, value in metrics(closed).items() if value != before[key]}
    assert raised.pop("client_errors_total") == raised.pop("requests_total") == 1
    assert not raised.keys() - {"prefill_seconds_total"}


@pytest.mark.parametrize("content", [b"{", b"[1]", b"[" * 5000])
def test_a_body_that_is_no_object(content: bytes, closed: str) -> None:
    status, reply = post(closed, content)
    assert status == 400 and "The body of the request" in reply["error"]["message"]


@pytest.mark.parametrize(
    ("part", "sentence"),
    [
        ({"type": "video_url", "video_url": {"url": "/etc/hostname"}}, "A video must be given as an address"),
        ({"type": "image", "url": "/etc/hostname"}, "not 'image'"),
        ({"type": "input_audio", "input_audio": {"data": ""}}, "not 'input_audio'"),
        ("text", "a list of parts"),
    ],
)
def test_other_parts_are_refused(part: Any, sentence: str, closed: str) -> None:
    status, reply = post(closed, chat({"role": "user", "content": [part]}))
    assert status == 400 and sentence in reply["error"]["message"]


def test_images_beside_a_call_of_tools_are_refused(closed: str) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    status, reply = post(closed, chat(says(1, "Look.", role="assistant") | {"tool_calls": [call]}, says("And?")))
    assert status == 400 and "no images of its own" in reply["error"]["message"]


def test_a_client_that_goes_away_harms_nobody(closed: str) -> None:
    before = metrics(closed)["cancelled_total"]
    config = '{"max_new_tokens": 1500, "min_new_tokens": 1500, "do_sample": false}'
    leave_in_the_middle(closed, chat(says(1, QUESTION), stream=True, generation_config=config))
    assert content(post(closed, chat(says(2, QUESTION)))) == by_library("divprune:0.25", [2])[0]
    for _ in range(600):
        if metrics(closed)["cancelled_total"] > before:
            return
        time.sleep(0.1)
    pytest.fail("the stream was not noticed to be gone")


def test_counters_are_what_was_run(closed: str) -> None:
    before = metrics(closed)
    report = by_library("divprune:0.25", [1, 2])[1]
    post(closed, chat(says(1, 2, QUESTION)))
    post(closed, chat(says(1, 2, QUESTION), stream=True))
    raised = {name: value - before[name] for name, value in metrics(closed).items()}
    whole, kept = report.tokens[0]
    assert raised["visual_tokens_before_total"] == 2 * whole and raised["visual_tokens_after_total"] == 2 * kept
    assert raised["requests_total"] == 2 and raised["images_total"] == 4 and raised["server_errors_total"] == 0
    assert 0 < raised["selection_seconds_total"] < raised["prefill_seconds_total"] < raised["generation_seconds_total"]


def compared(url: str, count: int) -> dict[str, float]:
    """The counters once so many comparisons have been made: they come behind the replies."""
    for _ in range(600):
        if (found := metrics(url))["canary_total"] + found["canary_failures_total"] >= count:
            return found
        time.sleep(0.1)
    pytest.fail("no comparison was made")


def test_the_canary_compares(caplog: pytest.LogCaptureFixture) -> None:
    numbers = [1, 2, 3]
    whole = [by_library("divprune:1.0", [number])[0] for number in numbers]
    few = [by_library("divprune:1", [number])[0] for number in numbers]
    apart = sum(one != other for one, other in zip(whole, few, strict=True))
    assert apart, "these pictures show no difference"
    with (
        caplog.at_level("INFO", "vlmprune.serve"),
        served("divprune:1", canary=1.0, allowed=Allowed(keep=True)) as (
            url,
            serving,
        ),
    ):
        for number, due in zip(numbers, few, strict=True):
            assert content(post(url, chat(says(number, QUESTION)))) == due
        assert compared(url, 3)["canary_disagreements_total"] == apart
        assert content(post(url, chat(says(1, QUESTION), vlmprune_keep=1.0, stream=True))) == whole[0]
        post(url, chat(says("No picture.")))
        sampled = chat(
            says(1, QUESTION), vlmprune_keep=1.0, generation_config='{"do_sample": true, "temperature": 9.0}'
        )
        post(url, {name: value for name, value in sampled.items() if name != "temperature"})
        found = compared(url, 5)
        assert found["canary_disagreements_total"] == apart and found["canary_failures_total"] == 0
        assert found["canary_total"] == 5
    assert sum("they differ from token" in line for line in caplog.messages) == apart
    assert "_vlmprune_session" not in serving.model.__dict__


# ---------------------------------------------------------------- never silently unpruned


async def _answers_itself(self: Any, model: Any, processor: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
    return "red", 1, torch.tensor([5])


async def _calls_the_model(self: Any, model: Any, processor: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
    model.forward(**inputs)


@pytest.mark.parametrize("other", [_answers_itself, _calls_the_model])
def test_a_server_that_goes_another_way_is_an_error(other: Any, closed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handlers.GenerateManager, "generate_non_streaming", other)
    status, reply = post(closed, chat(says(1, QUESTION)))
    assert status == 500 and "not known to be pruned" in reply["error"]["message"]
    assert reply["error"]["type"] == "server_error"


def test_a_stream_that_goes_another_way_is_an_error(closed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = handlers.GenerateManager.generate_streaming

    def past(self: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
        return plain(self, loaded().model, *args, **kwargs)

    monkeypatch.setattr(handlers.GenerateManager, "generate_streaming", past)
    _, events = post(closed, chat(says(1, QUESTION), stream=True))
    assert "not known to be pruned" in events[-1]["error"]["message"]


def test_images_that_get_lost_are_an_error(closed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def without(messages: Any, modality: Any) -> Any:
        return [{"role": "user", "content": [{"type": "text", "text": QUESTION}]}]

    monkeypatch.setattr(handlers.ChatCompletionHandler, "get_processor_inputs_from_messages", staticmethod(without))
    status, reply = post(closed, chat(says(1, QUESTION)))
    assert status == 500 and "the request has 1 images, and 0 of them were pruned" in reply["error"]["message"]


def test_a_standin_has_nothing_to_call_but_generate() -> None:
    standin = Standin(Turn(Serving(loaded(), recipe("divprune:0.5")), {}, "a"))
    assert standin.config is loaded().model.config and not hasattr(standin, "has_talker")
    with pytest.raises(UnseenError, match="forward"):
        _ = standin.forward


def test_errors_in_a_stream_can_be_read(closed: str) -> None:
    """transformers writes them without escaping quotes."""
    _, events = post(closed, chat(says(1, QUESTION), stream=True, generation_config='{"num_beams": 2}'))
    assert "streamer" in events[-1]["error"]["message"]


# ---------------------------------------------------------------- what a server is started with


@pytest.mark.parametrize("keep", [0, 0.0, 1.5, -1, True, "0.5", [0.5], math.nan, {}])
def test_wrong_budgets_of_requests(keep: Any) -> None:
    with pytest.raises(UserError, match="vlmprune_keep must be a share"):
        take_wanted({"vlmprune_keep": keep}, ALLOWED)


@pytest.mark.parametrize("query", ["", " ", 1, ["a"]])
def test_wrong_queries_of_requests(query: Any) -> None:
    with pytest.raises(UserError, match="vlmprune_query must be the text"):
        take_wanted({"vlmprune_query": query}, ALLOWED)


def test_fields_are_taken_out_of_the_body() -> None:
    body = {"vlmprune_keep": 3, "vlmprune_query": "a dog", "model": "llava"}
    assert take_wanted(body, ALLOWED) == Wanted(3, "a dog") and body == {"model": "llava"}


def test_what_cannot_be_allowed() -> None:
    with pytest.raises(UserError, match=r"cannot set the budget of divprune:0\.5 > fastv@2:0\.5"):
        Serving(loaded(), recipe("divprune:0.5 > fastv@2:0.5"), Allowed(keep=True))
    with pytest.raises(UserError, match=r"No method in divprune:0\.5 reads the question"):
        Serving(loaded(), recipe("divprune:0.5"), Allowed(query=True))
    with pytest.raises(UserError, match=r"canary=2\.0 must be a share"):
        Serving(loaded(), recipe("divprune:0.5"), canary=2.0)


def test_budgets_of_a_server_that_contradict() -> None:
    assert str(serving_recipe("divprune", latest=0.5, older=3)) == "divprune:0.5/latest+3/older"
    for options, sentence in (
        ({"keep": 0.5, "latest": 0.5, "older": 0.1}, "contradict each other"),
        ({"latest": 0.5}, "needs both"),
        ({"older": 0.5}, "needs both"),
        ({}, "needs a budget"),
    ):
        with pytest.raises(UserError, match=sentence):
            serving_recipe("divprune", **options)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="Say how to prune"):
        serving_recipe(None, 0.5)


def test_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlmprune.serve.engine.find_spec", lambda name: None)
    assert choose_engine() == choose_engine("transformers") == "transformers"
    with pytest.raises(UserError, match=r"^engine='vllm' needs vllm: pip install 'vlmprune\[vllm\]'"):
        choose_engine("vllm")
    with pytest.raises(UserError, match="engine='sglang' is not there"):
        choose_engine("sglang")
    monkeypatch.setattr("vlmprune.serve.engine.find_spec", lambda name: name == "vllm")
    assert choose_engine() == choose_engine("vllm") == "vllm"
    assert choose_engine("transformers") == "transformers"
