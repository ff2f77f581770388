"""`vlmprune serve --engine vllm` answers OpenAI's clients, and lives through a picture that cannot be read."""

from __future__ import annotations

import base64
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import pytest

from vlmprune.assets import load_embedded

from .conftest import PATIENCE, TOKENS, Prompt, Reference, written

RECIPE = "divprune:0.25"
DROPPED = 147  # of the 196 tokens of an image


@pytest.fixture(scope="module")
def server(variables: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--dtype", "float32", "--enforce-eager", "--max-model-len", "512", "--max-num-seqs", "4"]
    log = tmp_path_factory.mktemp("server") / "log.txt"
    command = [sys.executable, "-m", "vlmprune", "serve", "llava", "--engine", "vllm", "--method", RECIPE]
    with log.open("w") as said:
        process = subprocess.Popen(
            [*command, "--port", str(port), "--", *options], env=variables, stdout=said, stderr=subprocess.STDOUT
        )
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


def _ask(at: str, prompt: Prompt, picture: bytes | None = None) -> dict[str, Any]:
    data = base64.b64encode(picture or Path(prompt.pictures[0]).read_bytes()).decode()
    content = [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}},
        {"type": "text", "text": prompt.question},
    ]
    body = {
        "model": "llava", "messages": [{"role": "user", "content": content}], "temperature": 0, "max_tokens": TOKENS,
        "min_tokens": TOKENS,
    }  # fmt: skip
    headers = {"Content-Type": "application/json"}
    with urlopen(Request(f"{at}/v1/chat/completions", json.dumps(body).encode(), headers), timeout=PATIENCE) as reply:
        return json.load(reply)


def test_answers_as_transformers_does(server: str, prompts: list[Prompt], reference: Reference) -> None:
    processor: Any = load_embedded("llava")[1]
    reply = _ask(server, prompts[0])
    expected = processor.tokenizer.decode(reference("llava", RECIPE)[0], skip_special_tokens=True)
    assert reply["choices"][0]["message"]["content"].strip() == expected.strip()
    text = processor(text=written(prompts[0], processor), return_tensors="pt")  # one token for the image
    assert reply["usage"]["prompt_tokens"] == text["input_ids"].shape[1] - 1 + 196 - DROPPED


def test_lives_through_a_picture_that_cannot_be_read(server: str, prompts: list[Prompt]) -> None:
    before = _ask(server, prompts[1])["choices"][0]["message"]["content"]
    with pytest.raises(HTTPError) as refused:
        _ask(server, prompts[0], b"this is no picture")
    assert refused.value.code == 400
    assert _ask(server, prompts[1])["choices"][0]["message"]["content"] == before
