"""The middleware before vLLM's server, without vLLM: what passes it, figures of a request, and the canary."""

from __future__ import annotations

import asyncio
import copy
import json
import logging
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from harness import built
from torch import nn

from vlmprune.core.errors import UserError
from vlmprune.core.recipe import recipe
from vlmprune.models import adapter_for
from vlmprune.runtime.apart import Apart, Count, Kept
from vlmprune.runtime.taps import AttentionCall
from vlmprune.serve import overrides
from vlmprune.serve.vllm import canary, figures, requests
from vlmprune.serve.vllm.ranks import all_heads, first_ranks, on_ranks
from vlmprune.serve.vllm.requests import CHAT, Requests

KEY, WHOLE, KEPT = "key of an image", 196, 49
USAGE = {"visual_tokens": WHOLE, "kept": KEPT}
GREEDY = {"model": "llava", "temperature": 0, "messages": ["..."]}


class Adding:
    """Counters of one test."""

    def __init__(self) -> None:
        self.values: dict[str, float] = {}

    def add(self, amounts: dict[str, float]) -> None:
        for name, amount in amounts.items():
            self.values[name] = self.values.get(name, 0) + amount


@pytest.fixture(autouse=True)
def counted(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    adding = Adding()
    monkeypatch.setattr(requests, "counters", lambda names: adding)
    return adding.values


class Vllm:
    """Stands in for vLLM's server: its engine takes the prompts of a request, and it answers what a test says.

    Args:
        answer: the reply to a request's body; one that is bytes is sent as a stream, cut in pieces of seven.
        given: to `overrides`.
    """

    def __init__(self, answer: Callable[[dict[str, Any]], Any], **given: Any) -> None:
        self.answer, self.asked, self.images = answer, list[dict[str, Any]](), 1
        processor = SimpleNamespace(counts={KEY: Count(WHOLE, KEPT)})
        self.engine = SimpleNamespace(
            add_request=self.add_request, renderer=SimpleNamespace(get_mm_processor=lambda: processor)
        )
        model_config = SimpleNamespace(hf_overrides=overrides("divprune", 0.25, **given))
        self.state = SimpleNamespace(engine_client=self.engine, vllm_config=SimpleNamespace(model_config=model_config))
        self.prompts: list[Any] = []

    async def add_request(self, request_id: str, prompt: Any, params: Any) -> str:
        self.prompts.append(prompt)
        return "queue"

    def prompt(self) -> dict[str, Any]:
        places = {"image": ["its columns"] * self.images} if self.images else {}
        return {"mm_hashes": {"image": [KEY] * self.images}, "mm_placeholders": places}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        scope["route"] = "what the server writes there"
        body = json.loads((await receive())["body"])
        self.asked.append(body)
        prompt = self.prompt()
        for _ in range(2):  # as beams of one prompt
            assert await self.engine.add_request("chatcmpl-1", dict(prompt), None) == "queue"
        said = self.answer(body)
        status = said.pop("status", 200) if isinstance(said, dict) else 200
        stream = isinstance(said, bytes)
        kind = b"text/event-stream; charset=utf-8" if stream else b"application/json"
        content = said if isinstance(said, bytes) else json.dumps(said).encode()
        headers = [(b"content-type", kind), *([] if stream else [(b"content-length", str(len(content)).encode())])]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        for at in range(0, len(content), 7):
            await send({"type": "http.response.body", "body": content[at : at + 7], "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


class Client:
    """Sends its body in two parts, reads the reply, and then leaves."""

    def __init__(self, body: dict[str, Any], server: Vllm, path: str = CHAT) -> None:
        data = json.dumps(body).encode()
        half = len(data) // 2
        parts = [(data[:half], True), (data[half:], False)]
        self.left = [{"type": "http.request", "body": part, "more_body": more} for part, more in parts]
        headers = [(b"content-length", str(len(data)).encode()), (b"x-request-id", b"mine")]
        app = SimpleNamespace(state=server.state)
        self.scope = {"type": "http", "method": "POST", "path": path, "headers": headers, "app": app}
        self.answered: list[dict[str, Any]] = []

    async def receive(self) -> dict[str, Any]:
        return self.left.pop(0) if self.left else {"type": "http.disconnect"}

    async def send(self, message: dict[str, Any]) -> None:
        self.answered.append(message)

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.answered)

    @property
    def start(self) -> dict[str, Any]:
        [start] = [message for message in self.answered if message["type"] == "http.response.start"]
        return start


def exchange(server: Vllm, bodies: Sequence[dict[str, Any]], path: str = CHAT) -> list[Client]:
    """Clients that ask one after another, once everything has come to rest."""

    async def run() -> list[Client]:
        middleware, clients = Requests(server), []
        for body in bodies:
            clients.append(client := Client(body, server, path))
            await middleware(client.scope, client.receive, client.send)  # type: ignore[arg-type]
        while others := asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.wait(others, timeout=30)
        return clients

    return asyncio.run(run())


def reply(text: str = "blue") -> dict[str, Any]:
    return {"choices": [{"message": {"role": "assistant", "content": text}}], "usage": {"prompt_tokens": 60}}


# ---------------------------------------------------------------- requests


def test_the_server_reads_a_whole_request_and_that_its_client_leaves() -> None:
    read: list[Any] = []
    server = Vllm(lambda body: reply(), request_keep=True)

    async def app(scope: dict[str, Any], receive: Callable[[], Awaitable[Any]], send: object) -> None:
        read.extend([dict(scope["headers"]), await receive(), await receive()])

    client = Client({**GREEDY, "vlmprune_keep": 0.5}, server)
    asyncio.run(Requests(app)(client.scope, client.receive, client.send))  # type: ignore[arg-type]
    headers, request, end = read
    assert end == {"type": "http.disconnect"} and not request["more_body"]
    assert json.loads(request["body"])["mm_processor_kwargs"] == {"vlmprune_keep": "0.5"}
    assert headers[b"content-length"] == str(len(request["body"])).encode()


def test_a_refusal_has_the_form_of_vllms() -> None:
    server = Vllm(lambda body: reply())
    [client] = exchange(server, [{**GREEDY, "vlmprune_keep": 0.5}])
    assert client.start["status"] == 400 and not server.asked
    assert "vlmprune_keep" in json.loads(client.body)["error"]["message"]


@pytest.mark.parametrize("given", [{"canary": 0.5}, {"request_keep": True}])
def test_a_request_cannot_speak_to_the_processor(given: dict[str, Any]) -> None:
    server = Vllm(lambda body: reply(), **given)
    [client] = exchange(server, [{**GREEDY, "mm_processor_kwargs": {"vlmprune_keep": "1.0"}}])
    assert client.start["status"] == 400 and not server.asked


# ---------------------------------------------------------------- figures


def test_a_reply_says_how_many_tokens_were_kept(counted: dict[str, float]) -> None:
    server = Vllm(lambda body: reply("blau, größer"))
    [client] = exchange(server, [GREEDY])
    due = reply("blau, größer")
    due["usage"]["vlmprune"] = USAGE
    assert json.loads(client.body) == due
    assert dict(client.start["headers"])[b"content-length"] == str(len(client.body)).encode()
    assert counted == {"images_total": 1, "visual_tokens_before_total": WHOLE, "visual_tokens_after_total": KEPT}


def test_a_stream_says_it_where_it_states_usage() -> None:
    events = [
        {"choices": ["bl"]},
        {"choices": ["\n\nue"], "usage": None},
        {"choices": [], "usage": {"prompt_tokens": 60}},
    ]
    responses = {"type": "response.completed", "response": {"usage": {"input_tokens": 60}}}
    data = [f"data: {json.dumps(event)}" for event in events]
    written = [*data, f"event: response.completed\ndata: {json.dumps(responses)}", ": still there", "data: [DONE]", ""]
    [client] = exchange(Vllm(lambda body: "\n\n".join(written).encode()), [{**GREEDY, "stream": True}])
    got = client.body.decode().split("\n\n")
    assert [*got[:2], *got[4:]] == [*written[:2], *written[4:]], "nothing else is changed"
    assert json.loads(got[2].removeprefix("data: "))["usage"] == {"prompt_tokens": 60, "vlmprune": USAGE}
    name, _, rest = got[3].partition("\n")
    assert name == "event: response.completed"
    assert json.loads(rest.removeprefix("data: "))["response"]["usage"]["vlmprune"] == USAGE


@pytest.mark.parametrize(
    "said", [{"status": 400, "error": {"usage": {}}}, ["a", "list"], {"choices": []}, {"usage": None}, "words"]
)
def test_other_replies_are_left_as_they_are(said: Any) -> None:
    [client] = exchange(Vllm(lambda body: dict(said) if isinstance(said, dict) else said), [GREEDY])
    assert (
        json.loads(client.body) == {k: v for k, v in said.items() if k != "status"} if isinstance(said, dict) else said
    )


def test_a_request_without_images_says_so(counted: dict[str, float]) -> None:
    server = Vllm(lambda body: reply(), canary=1.0)
    server.images = 0
    [client] = exchange(server, [GREEDY])
    assert json.loads(client.body)["usage"]["vlmprune"] == {"visual_tokens": 0, "kept": 0}
    assert not counted and len(server.asked) == 1, "nothing to compare, either"


def test_a_prompt_that_was_counted_elsewhere_is_an_error() -> None:
    server = Vllm(lambda body: reply())
    server.engine.renderer.get_mm_processor().counts.clear()
    with pytest.raises(RuntimeError, match="1 images that vlmprune's processor did not count"):
        exchange(server, [GREEDY])
    assert not server.prompts


def test_a_servers_processes_share_a_folder_for_their_counters(tmp_path: Any) -> None:
    given = {figures.FOLDER: str(tmp_path)}
    figures.share_folder(given)
    figures._drop(given[figures.FOLDER])
    assert given == {figures.FOLDER: str(tmp_path)} and tmp_path.is_dir(), "the user's own"
    made: dict[str, str] = {}
    figures.share_folder(made)
    folder = figures.Path(made[figures.FOLDER])
    assert folder.is_dir()
    figures._drop(str(folder))
    assert not folder.exists()


# ---------------------------------------------------------------- the canary


def keep_of(body: dict[str, Any]) -> str:
    return (body.get("mm_processor_kwargs") or {}).get("vlmprune_keep", "the server's")


def colour(body: dict[str, Any]) -> dict[str, Any]:
    """The unpruned model sees another colour."""
    return reply("red" if keep_of(body) == "1.0" else "blue")


def test_the_canary_compares(counted: dict[str, float], caplog: pytest.LogCaptureFixture) -> None:
    server = Vllm(colour, canary=1.0)
    with caplog.at_level("INFO", "vlmprune.serve"):
        [client] = exchange(server, [GREEDY])
    assert [keep_of(body) for body in server.asked] == ["the server's", "1.0"]
    assert json.loads(client.body)["choices"] == reply("blue")["choices"]
    assert counted["canary_total"] == counted["canary_disagreements_total"] == counted["images_total"] == 1
    [line] = caplog.messages
    assert line == "canary chatcmpl-1: they differ from character 0: pruned 'blue', unpruned 'red'"


def test_replies_that_agree(counted: dict[str, float]) -> None:
    exchange(Vllm(lambda body: reply(), canary=1.0), [GREEDY] * 3)
    assert counted["canary_total"] == 3 and counted["canary_disagreements_total"] == 0


NOT_GREEDY: dict[str, dict[str, Any]] = {
    "sampled": {"temperature": 0.7, "n": 2},
    "by the model's own settings": {"temperature": None},
    "a stream": {"stream": True, "stream_options": {"include_usage": True}},
    "beams": {"use_beam_search": True, "n": 4},
}


@pytest.mark.parametrize("name", NOT_GREEDY)
def test_what_is_not_one_reply_is_compared_greedily(name: str, counted: dict[str, float]) -> None:
    def answer(body: dict[str, Any]) -> Any:
        return b"data: {}\n\n" if body.get("stream") else colour(body)

    server = Vllm(answer, canary=1.0, request_keep=True)
    exchange(server, [{**GREEDY, "vlmprune_keep": 0.5, "request_id": "mine", "seed": 3, **NOT_GREEDY[name]}])
    _, *again = server.asked
    assert [keep_of(body) for body in server.asked] == ["0.5", "0.5", "1.0"]
    for body in again:
        assert body["temperature"] == 0 and body["n"] == 1 and body["stream"] is False and body["seed"] == 3
        assert not {"use_beam_search", "stream_options", "request_id"} & body.keys()
    assert counted["canary_disagreements_total"] == 1


def test_calls_of_tools_are_compared() -> None:
    def message(**more: Any) -> dict[str, Any]:
        return {"choices": [{"message": {"content": None, **more}}]}

    call = {"id": "drawn", "function": {"name": "look", "arguments": "{}"}}
    assert canary.said(message(tool_calls=[call])) == canary.said(message(tool_calls=[{**call, "id": "otherwise"}]))
    assert canary.said(message(tool_calls=[call])) != canary.said(message())
    assert canary.said(message(reasoning="Hm.")) != canary.said(message())


@pytest.mark.parametrize(("share", "due"), [(0.02, [50, 100, 150]), (0.3, [4, 7, 10]), (1.0, [1, 2, 3])])
def test_the_share_is_not_drawn(share: float, due: list[int]) -> None:
    drawn = canary.Canary(None, share, Adding().add)
    assert [number for number in range(1, due[-1] + 1) if drawn.due()] == due


def test_a_failed_comparison_is_counted(counted: dict[str, float], caplog: pytest.LogCaptureFixture) -> None:
    def answer(body: dict[str, Any]) -> dict[str, Any]:
        return {"status": 400, "error": "too long"} if keep_of(body) == "1.0" else reply()

    [client] = exchange(Vllm(answer, canary=1.0), [GREEDY])
    assert client.start["status"] == 200 and "canary_total" not in counted
    assert counted["canary_failures_total"] == 1
    [record] = [one for one in caplog.records if one.levelno == logging.ERROR]
    assert "answered the canary with 400" in str(record.exc_info[1])  # type: ignore[index]


def test_errors_are_not_compared(counted: dict[str, float]) -> None:
    exchange(Vllm(lambda body: {"status": 500}, canary=1.0), [GREEDY])
    assert not {name for name in counted if name.startswith("canary")}


def test_only_so_many_comparisons_wait(counted: dict[str, float]) -> None:
    server = Vllm(colour, canary=1.0)

    async def run() -> None:
        comparing = canary.Canary(server, 1.0, requests.counters(()).add)
        requests.watch(server.engine)
        scope = {"headers": [], "type": "http"}
        for _ in range(canary.WAITING + 3):
            comparing.begin("id", scope, json.dumps(GREEDY).encode(), reply())
        while others := asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.wait(others, timeout=30)

    asyncio.run(run())
    assert counted == {
        "canary_skipped_total": 3, "canary_total": canary.WAITING, "canary_disagreements_total": canary.WAITING
    }  # fmt: skip


# ---------------------------------------------------------------- a model on several GPUs


def test_all_gpus_go_on_with_the_firsts_choice() -> None:
    firsts = [Kept(torch.rand(2, 4), *torch.rand(3, 2)), Kept(torch.rand(1, 4), *torch.rand(3, 1))]
    own = [Kept(torch.zeros(2, 4), *torch.zeros(3, 2)), Kept(torch.zeros(1, 4), *torch.zeros(3, 1))]
    given = iter([part for image in firsts for part in (image.features, image.slots, image.columns, image.places)])
    group = SimpleNamespace(world_size=2, broadcast=lambda part: part.copy_(next(given)))
    for found, due in zip(first_ranks(group, own), firsts, strict=True):
        assert torch.equal(found.features, due.features) and torch.equal(found.slots, due.slots)
        assert torch.equal(found.columns, due.columns) and torch.equal(found.places, due.places)
    assert not own[0].features.any(), "what the encoder gave is left as it was"
    assert first_ranks(SimpleNamespace(world_size=1), own) == own


class Halves:
    """A group of two, each of which has half of the heads of an attention module."""

    world_size = 2

    def __init__(self, whole: AttentionCall) -> None:
        self.others = iter([whole.query[:, 1:], whole.key[:, 1:], whole.value[:, 1:]])

    def all_gather(self, own: torch.Tensor, dim: int) -> torch.Tensor:
        return torch.cat([own, next(self.others)], dim)


class Column(nn.Linear):
    """In the place of vLLM's layer that has a part of the heads."""

    tp_size, num_heads = 1, 1


@pytest.fixture
def column(monkeypatch: pytest.MonkeyPatch) -> type[Column]:
    package = "vllm.model_executor.layers.linear"
    for name in ("vllm", "vllm.model_executor", "vllm.model_executor.layers"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, package, SimpleNamespace(ColumnParallelLinear=Column))
    return Column


def test_shared_heads_are_read_together(column: type[Column]) -> None:
    whole = AttentionCall(torch.rand(1, 2, 5, 4), torch.rand(1, 2, 5, 4), torch.rand(1, 2, 5, 4), 0.5)
    half = replace(whole, query=whole.query[:, :1], key=whole.key[:, :1], value=whole.value[:, :1])
    attention = nn.Module()
    attention.q_proj = column(2, 2)
    assert all_heads(Halves(whole), attention, half) is half, "it is not shared out"
    attention.q_proj.tp_size = 2
    found = all_heads(Halves(whole), attention, half)
    for name in ("query", "key", "value"):
        assert torch.equal(getattr(found, name), getattr(whole, name))


def test_merging_among_shared_heads_is_refused(column: type[Column]) -> None:
    model = copy.deepcopy(built("llava"))
    group = SimpleNamespace(world_size=2)
    assert on_ranks(Apart(model, recipe("tome(inside=True):0.5")), group).whole is None
    attention: Any = adapter_for(model).encoder_attentions()[0]
    attention.qkv_proj = column(2, 2)
    attention.qkv_proj.tp_size = 2
    assert on_ranks(Apart(model, recipe("vispruner:0.5")), group).whole is not None
    assert attention.num_heads == 1 and attention.embed_dim == attention.head_dim, "those on this GPU"
    with pytest.raises(UserError, match="tome merges inside the encoder, whose heads vLLM has shared out"):
        on_ranks(Apart(model, recipe("tome(inside=True):0.5")), group)
