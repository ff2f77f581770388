"""Servers in processes of their own, as a user starts them, and what a client asks them."""

from __future__ import annotations

import base64
import json
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from .conftest import PATIENCE, TOKENS

COMPARISONS = ("total", "disagreements_total", "failures_total", "skipped_total")  # counters of the canary
VLLM = ("--dtype", "float32", "--enforce-eager", "--max-model-len", "512", "--block-size", "32")


@contextmanager
def served(
    model: str, variables: dict[str, str], folder: Path, ours: Sequence[str], theirs: Sequence[str] = ()
) -> Iterator[str]:
    """The address of a server that answers.

    Args:
        ours: options of `vlmprune serve`.
        theirs: further options of `vllm serve`.
    """
    port = free_port()
    command = [sys.executable, "-m", "vlmprune", "serve", model, "--engine", "vllm", *ours, "--port", str(port)]
    with running([*command, "--", *VLLM, *theirs], port, variables, folder) as at:
        yield at


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextmanager
def running(command: Sequence[str], port: int, variables: dict[str, str], folder: Path) -> Iterator[str]:
    """The address of a server that a command starts, once it answers."""
    log = folder / "log.txt"
    with log.open("w") as said:
        process = subprocess.Popen(command, env=variables, stdout=said, stderr=subprocess.STDOUT)
        try:
            at = f"http://127.0.0.1:{port}"
            _wait(process, at, log)
            yield at
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()


def _wait(process: Any, at: str, log: Path) -> None:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if process.poll() is not None:
            break
        try:
            urlopen(f"{at}/health", timeout=5)
            return
        except (URLError, OSError):
            time.sleep(2)
    raise RuntimeError(f"The server did not start: {log.read_text()[-6000:]}")


def body_of(question: str, pictures: Sequence[bytes], **more: Any) -> dict[str, Any]:
    """A greedy request for a chat completion."""
    images = [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{base64.b64encode(data).decode()}"}}
        for data in pictures
    ]
    content = [*images, {"type": "text", "text": question}]
    asked = {"model": "llava", "temperature": 0, "max_tokens": TOKENS, "min_tokens": TOKENS}
    return {**asked, "messages": [{"role": "user", "content": content}], **more}


def ask(at: str, body: dict[str, Any]) -> dict[str, Any]:
    headers = {"Content-Type": "application/json"}
    with urlopen(Request(f"{at}/v1/chat/completions", json.dumps(body).encode(), headers), timeout=PATIENCE) as reply:
        return json.load(reply)


def events_of(at: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    """What a stream sends to its end."""
    content = json.dumps({**body, "stream": True}).encode()
    headers = {"Content-Type": "application/json"}
    with urlopen(Request(f"{at}/v1/chat/completions", content, headers), timeout=PATIENCE) as reply:
        *events, end = [line.decode().removeprefix("data: ").strip() for line in reply if line.strip()]
    assert end == "[DONE]"
    return [json.loads(event) for event in events]


def text_of(reply: dict[str, Any]) -> str:
    return reply["choices"][0]["message"]["content"].strip()


def post(at: str, path: str, body: dict[str, Any]) -> tuple[int, str]:
    """Status and body of the reply at any address."""
    request = Request(at + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urlopen(request, timeout=PATIENCE) as reply:
            return reply.status, reply.read().decode()
    except HTTPError as error:
        return error.code, error.read().decode()


def refusal(at: str, body: dict[str, Any]) -> tuple[int, str]:
    """Status and message of the error by which a request is answered."""
    try:
        reply = ask(at, body)
    except HTTPError as error:
        return error.code, json.load(error)["error"]["message"]
    raise AssertionError(f"It was answered: {text_of(reply)}")


def metric(at: str, name: str, **labels: str) -> float:
    """The sum of a metric of vLLM or of vlmprune over everything that has these labels."""
    with urlopen(f"{at}/metrics", timeout=60) as reply:
        lines = reply.read().decode().splitlines()
    found = [
        float(line.rpartition(" ")[2])
        for line in lines
        if re.match(rf"(vllm:|vlmprune_){name}(\{{|\s)", line)
        and all(f'{key}="{value}"' in line for key, value in labels.items())
    ]
    if not found:
        raise AssertionError(f"The server has no metric {name}")
    return sum(found)


def compared(at: str, count: int) -> dict[str, float]:
    """The canary's counters once so many comparisons have been made: they come behind the replies."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        found = {name: metric(at, f"canary_{name}") for name in COMPARISONS}
        if found["total"] + found["failures_total"] + found["skipped_total"] >= count:
            return found
        time.sleep(1)
    raise AssertionError(f"No comparison was made: {found}")
