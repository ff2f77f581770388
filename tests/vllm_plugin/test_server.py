"""`vlmprune serve --engine vllm` answers OpenAI's clients, many at once, and lives through what they do wrong."""

from __future__ import annotations

import json
import random
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from PIL import Image

from vlmprune.assets import load_embedded

from .conftest import PATIENCE, TOKENS, Prompt, Reference
from .conftest import written as in_words
from .server import ask, body_of, events_of, metric, refusal, served, text_of

RECIPE = "divprune:0.25"
DROPPED = 147  # of the 196 tokens of an image
AT_ONCE = 200
LEAVING = 10  # one client in so many does not wait for its reply
LONG = 300  # tokens of a reply that nobody waits for: it lasts longer than its client's patience


@pytest.fixture(scope="module")
def server(variables: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Its address."""
    folder = tmp_path_factory.mktemp("server")
    with served("llava", variables, folder, ["--method", RECIPE], ["--max-num-seqs", "16"]) as at:
        yield at


@pytest.fixture(scope="module")
def asked(prompts: list[Prompt]) -> list[dict[str, Any]]:
    """Requests that differ from one another in picture and question."""
    scene = Image.open(prompts[0].pictures[0])
    found = []
    for angle in range(0, 360, 18):
        file = BytesIO()
        scene.rotate(angle).save(file, "PNG")
        found.append(body_of(prompts[angle % 2].question, [file.getvalue()]))
    return found


def picture_of(prompt: Prompt) -> bytes:
    return Path(prompt.pictures[0]).read_bytes()


def test_answers_as_transformers_does(server: str, prompts: list[Prompt], reference: Reference) -> None:
    processor: Any = load_embedded("llava")[1]
    reply = ask(server, body_of(prompts[0].question, [picture_of(prompts[0])]))
    expected = processor.tokenizer.decode(reference("llava", RECIPE)[0], skip_special_tokens=True)
    assert text_of(reply) == expected.strip()
    text = processor(text=in_words(prompts[0], processor), return_tensors="pt")  # one token for the image
    assert reply["usage"]["prompt_tokens"] == text["input_ids"].shape[1] - 1 + 196 - DROPPED


def test_figures(server: str, prompts: list[Prompt]) -> None:
    """Of a picture that is new to the engine, and of the same one again, which the engine has in its caches."""
    file = BytesIO()
    Image.open(prompts[0].pictures[0]).rotate(7).save(file, "PNG")
    body = body_of(prompts[0].question, [file.getvalue(), picture_of(prompts[1])])
    seen = [figures(server)]
    for _ in range(2):
        assert ask(server, body)["usage"]["vlmprune"] == {"visual_tokens": 392, "kept": 392 - 2 * DROPPED}
        seen.append(figures(server))
    for before, after in pairwise(seen):
        raised = [after[name] - before[name] for name in FIGURES]
        assert raised == [2, 392, 392 - 2 * DROPPED]
    start, first, again = (one["seconds"] for one in seen)
    assert start < first == again, "the second time nothing is selected"


FIGURES = ("images_total", "visual_tokens_before_total", "visual_tokens_after_total")


def figures(at: str) -> dict[str, float]:
    return {"seconds": metric(at, "selection_seconds_total"), **{name: metric(at, name) for name in FIGURES}}


def test_a_stream_tells_its_figures_with_its_usage(server: str, prompts: list[Prompt]) -> None:
    body = body_of(prompts[0].question, [picture_of(prompts[0])])
    whole = ask(server, body)
    *events, last = events_of(server, {**body, "stream_options": {"include_usage": True}})
    assert "".join(event["choices"][0]["delta"].get("content") or "" for event in events).strip() == text_of(whole)
    stated = {name: value for name, value in whole["usage"].items() if value is not None}
    assert last["usage"] == stated and stated["vlmprune"] == {"visual_tokens": 196, "kept": 196 - DROPPED}


def leave(at: str, body: dict[str, Any], number: int) -> None:
    """Ask for a long reply and hang up: after its first words, or some time after asking."""
    stream = number % 2 == 0
    connection = HTTPConnection(urlsplit(at).netloc, timeout=PATIENCE)
    asked = json.dumps({**body, "max_tokens": LONG, "min_tokens": LONG, "stream": stream})
    connection.request("POST", "/v1/chat/completions", asked, {"Content-Type": "application/json"})
    if stream:
        assert connection.getresponse().readline().startswith(b"data:")
    else:
        time.sleep(random.Random(number).uniform(0, 3))
    assert connection.sock is not None or stream
    if connection.sock is not None:
        connection.sock.shutdown(socket.SHUT_RDWR)
    connection.close()


def test_many_at_once_of_whom_some_hang_up(server: str, asked: list[dict[str, Any]]) -> None:
    ask(server, asked[0])
    used, written = metric(server, "kv_cache_usage_perc"), metric(server, "generation_tokens_total")

    def client(number: int) -> str | None:
        body = asked[number % len(asked)]
        if number % LEAVING == LEAVING - 1:
            return leave(server, body, number // LEAVING)
        return text_of(ask(server, body))

    with ThreadPoolExecutor(AT_ONCE) as clients:
        said = list(clients.map(client, range(AT_ONCE), timeout=PATIENCE))
    alone = [text_of(ask(server, body)) for body in asked]
    assert len({*alone}) > len(alone) // 2, "replies that are all the same prove nothing"
    stayed = {number: text for number, text in enumerate(said) if text is not None}
    assert len(stayed) == AT_ONCE - AT_ONCE // LEAVING
    assert stayed == {number: alone[number % len(asked)] for number in stayed}
    read = (len(stayed) + len(alone)) * TOKENS
    assert metric(server, "generation_tokens_total") - written < read + AT_ONCE // LEAVING * LONG // 2, "for nobody"
    assert metric(server, "num_requests_running") == metric(server, "num_requests_waiting") == 0
    assert metric(server, "kv_cache_usage_perc") == used


BROKEN = {
    "no picture": lambda data: b"this is no picture",
    "half of one": lambda data: data[: len(data) // 2],
    "nothing": lambda data: b"",
}


@pytest.mark.parametrize("name", BROKEN)
def test_lives_through_a_picture_that_cannot_be_read(name: str, server: str, prompts: list[Prompt]) -> None:
    right = body_of(prompts[1].question, [picture_of(prompts[1])])
    before = text_of(ask(server, right))
    status, message = refusal(server, body_of(prompts[0].question, [BROKEN[name](picture_of(prompts[0]))]))
    assert status == 400 and "image" in message
    assert text_of(ask(server, right)) == before


def test_a_prompt_is_too_long_by_what_is_left_of_it(server: str, prompts: list[Prompt]) -> None:
    picture = picture_of(prompts[0])
    fits = ask(server, body_of(prompts[0].question, [picture] * 3))
    assert fits["usage"]["prompt_tokens"] < 512 - 3 * DROPPED + DROPPED, "588 tokens of pictures alone without pruning"
    status, message = refusal(server, body_of("plate " * 600, [picture]))
    assert status == 400 and "maximum context length is 512 tokens" in message
    assert text_of(ask(server, body_of(prompts[0].question, [picture] * 3))) == text_of(fits)


def test_a_method_that_does_not_exist_is_refused_in_one_sentence(variables: dict[str, str]) -> None:
    command = [sys.executable, "-m", "vlmprune", "serve", "llava", "--engine", "vllm", "--method", "divprun:0.5"]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 2 and not done.stdout
    [sentence] = done.stderr.splitlines()
    assert "There is no method 'divprun'" in sentence


def test_a_budget_of_a_request_is_refused(server: str, prompts: list[Prompt]) -> None:
    """vLLM would take the one for a field that it does not know, and the other from nobody."""
    asked = body_of(prompts[0].question, [picture_of(prompts[0])])
    status, message = refusal(server, {**asked, "vlmprune_keep": 0.5})
    assert status == 400 and "takes no vlmprune_keep" in message and "--allow-request-keep" in message
    status, message = refusal(server, {**asked, "mm_processor_kwargs": {"vlmprune_keep": "0.5"}})
    assert status == 400 and "mm_processor_kwargs are disabled" in message
