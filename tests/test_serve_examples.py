"""`vlmprune serve` as a user runs it: the command line, the documented examples, and the end by Ctrl-C."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("fastapi")
from harness_serve import QUESTION, chat, content, loaded, metrics, post, says, served

from vlmprune import cli
from vlmprune.serve.metrics import COUNTERS

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "serving.md"
ADDRESS = "http://127.0.0.1:8000"
DUE = {"visual_tokens": 196, "kept": 49}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with served("divprune:0.25") as (found, _):
        yield found


def example(language: str, url: str) -> str:
    found = re.findall(rf"^```{language}\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.M | re.S)
    assert len(found) == 1 and ADDRESS in found[0]
    return found[0].replace(ADDRESS, url)


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
def test_the_curl_example(url: str) -> None:
    done = subprocess.run(
        ["bash", "-c", example("bash", url)], cwd=ROOT, capture_output=True, text=True, check=True, timeout=300
    )
    assert json.loads(done.stdout)["usage"]["vlmprune"] == DUE


def test_the_client_example(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(example("python client", url), "serving.md", "exec"), {})
    reply, usage = printed.getvalue().splitlines()
    assert reply and usage == str(DUE)


def test_openais_client_reads_streams_and_errors(url: str) -> None:
    import openai

    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    asked: dict[str, Any] = {"model": "llava", "messages": [says(1, QUESTION)], "temperature": 0, "max_tokens": 16}
    whole = client.chat.completions.create(**asked)
    events = list(client.chat.completions.create(**asked, stream=True))
    assert "".join(event.choices[0].delta.content or "" for event in events) == whole.choices[0].message.content
    with pytest.raises(openai.BadRequestError, match="takes no vlmprune_keep"):
        client.chat.completions.create(**asked, extra_body={"vlmprune_keep": 0.5})
    beams = {"generation_config": '{"num_beams": 2}'}
    with pytest.raises(openai.APIError, match="streamer"):
        list(client.chat.completions.create(**asked, stream=True, extra_body=beams))
    assert [model.id for model in client.models.list()] == ["llava"]


def test_another_family_is_served() -> None:
    with served("divprune:0.25", model="qwen2_5_vl") as (url, _):
        status, reply = post(url, chat(says(1, 2, QUESTION)) | {"model": "qwen2_5_vl"})
        usage = reply["usage"]["vlmprune"]
        assert status == 200 and usage["kept"] == 2 * round(usage["visual_tokens"] / 2 * 0.25) > 0


def test_every_counter_is_on_the_page(url: str) -> None:
    table = PAGE.read_text(encoding="utf-8").partition("## Metrics")[2].partition("## Canary")[0]
    assert re.findall(r"`(\w+_total)`", table) == [*COUNTERS] == [*metrics(url)]


WRONG = {
    "no method": ([], "Say how to prune: give --method divprune and --keep 0.25"),
    "no such method": (["--method", "divprun", "--keep", "0.25"], "divprun"),
    "no budget": (["--method", "divprune"], "needs a budget"),
    "a wrong budget": (["--method", "divprune", "--keep", "2.5"], "not a budget"),
    "half of the ages": (["--method", "divprune", "--keep-latest", "0.5"], "--keep-older"),
    "two budgets": (
        ["--method", "divprune", "--keep", "0.5", "--keep-latest", "0.5", "--keep-older", "1"],
        "contradict",
    ),
    "no such engine": (["--engine", "sglang"], "--engine sglang is not there"),
    "vllm": (["--engine", "vllm", "--method", "divprune", "--keep", "0.25"], "pip install 'vlmprune[vllm]'"),
    "an option of vllm": (["--method", "divprune", "--keep", "0.25", "--", "--max-model-len", "512"], "option of vLLM"),
    "batching": (["--continuous-batching"], "Continuous batching packs the tokens of several prompts"),
    "no such host": (["--method", "divprune", "--keep", "1", "--host", "256.1.1.1"], "Nothing can be served at --host"),
    "no such port": (["--method", "divprune", "--keep", "1", "--port", "70000"], "Nothing can be served at"),
    "a wrong canary": (["--method", "divprune", "--keep", "1", "--canary", "7", "--port", "0"], "--canary 7.0 must be"),
    "a chain": (
        ["--method", "divprune:0.5 > fastv:0.5", "--allow-request-keep", "--port", "0"],
        "leave out --allow-request-keep",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_start_is_one_sentence(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options, sentence = WRONG[name]
    monkeypatch.setattr("vlmprune.bench.load.load_model", lambda *_: loaded())
    engine = [] if "--engine" in options else ["--engine", "transformers"]
    assert cli.main(["serve", "llava", *engine, *options]) == 2
    err = capsys.readouterr().err
    assert sentence in err and err.count("\n") == 1 and err.startswith("vlmprune: ")


def test_a_port_that_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        options = ["--engine", "transformers", "--method", "divprune", "--keep", "0.25", "--port", port]
        assert cli.main(["serve", "llava", *options]) == 2
    assert f"--port {port}: Address already in use" in capsys.readouterr().err


@pytest.mark.slow
def test_a_server_of_its_own_until_ctrl_c() -> None:
    command = [sys.executable, "-m", "vlmprune.cli", "serve", "llava", "--engine", "transformers", "--port", "0"]
    command += ["--method", "divprune", "--keep", "0.25", "--canary", "1"]
    environment = os.environ | {"PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment) as own:
        try:
            assert own.stdout is not None
            line = own.stdout.readline()
            found = re.fullmatch(r"Serving llava under divprune:0\.25 at (http://127\.0\.0\.1:\d+)/v1 .*\n", line)
            assert found, line + own.stdout.read()
            assert content(post(found[1], chat(says(1, QUESTION))))
            own.send_signal(signal.SIGINT)
            rest = own.communicate(timeout=60)[0]
        finally:
            own.kill()
    assert own.returncode == 0 and "Traceback" not in rest, rest
