"""What tests of the server share: one model for all servers, servers in a thread, and requests."""

from __future__ import annotations

import base64
import json
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from io import BytesIO
from typing import Any

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("openai")
import uvicorn
from harness_data import picture
from PIL import Image

import vlmprune
from vlmprune.bench.load import Loaded, load_model
from vlmprune.core.recipe import recipe
from vlmprune.serve.address import listen
from vlmprune.serve.app import build_app
from vlmprune.serve.serving import Serving

QUESTION = "What number is on the plate?"
LONG = 16  # tokens of a reply at most


@cache
def loaded(name: str = "llava") -> Loaded:
    return load_model(name, "cpu")


@contextmanager
def served(method: str, model: str = "llava", **options: Any) -> Iterator[tuple[str, Serving]]:
    """A server in a thread: its address, and what it serves."""
    serving = Serving(loaded(model), recipe(method), **options)
    with listen("127.0.0.1", 0) as at:
        server = uvicorn.Server(uvicorn.Config(build_app(serving), log_level="warning", timeout_graceful_shutdown=2))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [at]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{at.getsockname()[1]}", serving
        finally:
            server.should_exit = True
            thread.join()
            serving.stop()


def shown(number: int) -> Image.Image:
    return picture(number, (160, 120))


def address(image: Image.Image | int) -> str:
    """A picture in a request itself."""
    file = BytesIO()
    (shown(image) if isinstance(image, int) else image).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def says(*parts: str | int, role: str = "user") -> dict[str, Any]:
    """A message of texts, and of pictures by their numbers."""
    content = [
        {"type": "text", "text": part}
        if isinstance(part, str)
        else {"type": "image_url", "image_url": {"url": address(part)}}
        for part in parts
    ]
    return {"role": role, "content": content}


def chat(*messages: dict[str, Any], **more: Any) -> dict[str, Any]:
    """The body of a request for a chat completion, greedy."""
    return {"model": "llava", "messages": list(messages), "max_tokens": LONG, "temperature": 0, **more}


def post(url: str, body: Any, path: str = "/v1/chat/completions") -> tuple[int, Any]:
    """The status and what was answered: an object, or of a stream the list of its events."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(url + path, content, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=300) as response:
            status, text = response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        status, text = error.code, error.read().decode()
    if not text.startswith("data: "):
        return status, json.loads(text)
    return status, [json.loads(event.removeprefix("data: ")) for event in text.split("\n\n") if event]


def content(reply: tuple[int, Any]) -> str:
    status, body = reply
    assert status == 200, body
    if isinstance(body, dict):
        return body["choices"][0]["message"]["content"]
    return "".join(event["choices"][0]["delta"].get("content") or "" for event in body)


def metrics(url: str) -> dict[str, float]:
    with urllib.request.urlopen(f"{url}/metrics", timeout=60) as response:
        assert response.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        lines = [line for line in response.read().decode().splitlines() if not line.startswith("#")]
    return {name.removeprefix("vlmprune_"): float(value) for name, value in (line.split(" ") for line in lines)}


def by_library(method: str, numbers: list[int], question: str = QUESTION, model: str = "llava") -> tuple[str, Any]:
    """The reply that the library gives without a server, and the report."""
    own = loaded(model)
    parts = [*({"type": "image"} for _ in numbers), {"type": "text", "text": question}]
    prompt = own.processor.apply_chat_template([{"role": "user", "content": parts}], add_generation_prompt=True)
    inputs = own.processor(images=[shown(number) for number in numbers], text=[prompt], return_tensors="pt")
    reading: dict[str, Any] = {"text_tower": own.text_tower, "tokenizer": own.processor}
    with vlmprune.prune(own.model, method, **reading) as session:
        session.question = question
        ids = own.model.generate(**inputs, max_new_tokens=LONG, do_sample=False)
    reply = own.processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return reply, session.last


def leave_in_the_middle(url: str, body: dict[str, Any]) -> None:
    """Begin to read a stream, and go away."""
    host, _, port = url.removeprefix("http://").partition(":")
    sent = json.dumps(body).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(sent)}\r\n\r\n"
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(head.encode() + sent)
        assert b"200" in connection.recv(512)
