"""Requests a second, time to the first token and tokens in the cache under vLLM, pruned beside not pruned.

    python benchmarks/serving.py                       # two models with random weights, on a CPU: some 50 minutes
    python benchmarks/serving.py --small               # whether it runs: tiny models, few requests
    python benchmarks/serving.py --device cuda --model llava-hf/llava-1.5-7b-hf -- --gpu-memory-utilization 0.22

Four servers of a model run at once, and are asked in turns, one at a time, so that a machine that slows down slows all
of them: vLLM's own implementation of the model, its backend for transformers' models, and the plugin that keeps all
tokens and a share of them. Options behind `--` are for `vllm serve`; on a GPU the four share its memory. Every picture
is another one, so no cache hides the encoder. Nearly all of the random models' work is the language model's, as in
large ones: 24 layers, 1,024 wide, 576 visual tokens, 8 new ones.

On a CPU this needs the environment that `python3 tools/extras.py vllm` makes; from a checkout:

    PYTHONPATH=src ~/.cache/vlmprune/environments/vllm/bin/python benchmarks/serving.py
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import numpy as np
from beside import Figures, parser
from PIL import Image
from serving_models import MODELS, save

from vlmprune.core.recipe import recipe
from vlmprune.serve.vllm.launch import vllm_command

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "tools"))
import vllm_shims  # noqa: E402

PATIENCE, PATIENCE_AT_END = 1200, 60  # seconds until a server is there, and until it has gone
QUESTION = "What is in this picture, and where?"
NATIVE, BACKEND = "vLLM's own model", "transformers' model in vLLM"
BLOCKS = 24  # squares a side of a picture


@dataclass(frozen=True)
class Asked:
    """What came of one request: seconds to its first token and to its last, and the tokens of its prompt."""

    first: float
    last: float
    prompt: int


@dataclass(frozen=True)
class Server:
    name: str
    port: int
    process: subprocess.Popen[bytes] | None = None

    def ask(self, picture: str, tokens: int) -> Asked:
        image = {"type": "image_url", "image_url": {"url": picture}}
        body = {
            "model": "m", "messages": [{"role": "user", "content": [image, {"type": "text", "text": QUESTION}]}],
            "max_tokens": tokens, "min_tokens": tokens, "ignore_eos": True, "temperature": 0, "stream": True,
            "stream_options": {"include_usage": True},
        }  # fmt: skip
        connection = HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        begun, first, prompt = time.perf_counter(), 0.0, 0
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
        reply = connection.getresponse()
        if reply.status != 200:
            raise SystemExit(f"{self.name}: {reply.read().decode()}")
        for line in reply:
            if line.startswith(b"data: {"):
                first = first or time.perf_counter() - begun
                prompt = (json.loads(line[6:]).get("usage") or {}).get("prompt_tokens", prompt)
        connection.close()
        return Asked(first, time.perf_counter() - begun, prompt)


def main(arguments: Sequence[str]) -> None:
    behind = arguments.index("--") if "--" in arguments else len(arguments)
    asked, options = options_of(arguments[:behind]), list(arguments[behind + 1 :])
    figures = Figures(asked)
    figures.made["machine"]["vllm"] = version("vllm")
    for model in asked.model:
        with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
            place, own = model, options
            if model in MODELS:
                place, own = (
                    str(save(model, Path(folder) / model, asked.layers, asked.width)),
                    ["--load-format", "dummy", *options],
                )
            names = commands(place, asked.method, asked.keep, asked.device, own)
            variables = variables_of(asked.device, Path(folder) / "named")
            servers = [stack.enter_context(started(name, words, variables)) for name, words in names.items()]
            for server in servers:
                wait(server)
            measure(model, servers, asked, figures)


def options_of(arguments: Sequence[str]) -> argparse.Namespace:
    made = parser(__doc__, "serving.json", repeats=3)
    made.add_argument("--model", nargs="+", default=[*MODELS], help="(default: %(default)s, with random weights)")
    made.add_argument("--method", default="divprune", help="(default: %(default)s)")
    made.add_argument("--keep", type=float, default=0.25, help="(default: %(default)s)")
    made.add_argument(
        "--at-once", type=int, nargs="+", default=[1, 4, 8, 16, 32], help="requests (default: %(default)s)"
    )
    made.add_argument("--requests", type=int, default=8, help="of a server in a turn, at most (default: %(default)s)")
    made.add_argument("--new-tokens", type=int, default=8, help="of a reply (default: %(default)s)")
    made.add_argument("--side", type=int, default=336, help="of the pictures, in pixels (default: %(default)s)")
    made.add_argument("--layers", type=int, default=24, help="of the random models (default: %(default)s)")
    made.add_argument("--width", type=int, default=1024, help="of the random models (default: %(default)s)")
    made.add_argument("--small", action="store_true", help="tiny models, few requests: no figures to keep")
    asked = made.parse_args(arguments)
    if asked.small:
        asked.at_once, asked.requests, asked.new_tokens, asked.layers, asked.width = [1, 2], 2, 2, 2, 64
    return asked


def commands(place: str, method: str, keep: float, device: str, options: list[str]) -> dict[str, list[str]]:
    """The servers of a model by name, without their ports."""
    if device == "cpu":
        options = ["--dtype", "float32", "--max-model-len", "1024", "--max-num-seqs", "32", *options]
    found: dict[str, list[str]] = {}
    for share in (1.0, keep):
        command = vllm_command(place, recipe(method, share), arguments=options)
        bare = command[: command.index("--hf-overrides")] + options
        found |= {NATIVE: bare, BACKEND: [*bare, "--model-impl", "transformers"], f"{method}:{share:g}": command}
    return found


def variables_of(device: str, folder: Path) -> dict[str, str]:
    """Of the servers, which find the plugin of this checkout."""
    folder.mkdir()
    found = {"PYTHONPATH": vllm_shims.found(ROOT, folder), "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1"}
    if device == "cpu":
        threads = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": str(os.cpu_count())}
        found |= {"VLLM_CPU_KVCACHE_SPACE": "1", **threads}
    return os.environ | found


@contextmanager
def started(name: str, command: list[str], variables: dict[str, str]) -> Iterator[Server]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [*command, "--disable-uvicorn-access-log"]
    for option, value in (("--port", str(port)), ("--served-model-name", "m")):
        words[words.index(option) + 1] = value
    process = subprocess.Popen(words, env=variables, stdout=subprocess.DEVNULL)
    try:
        yield Server(name, port, process)
    finally:
        process.terminate()
        try:
            process.wait(PATIENCE_AT_END)
        except subprocess.TimeoutExpired:
            process.kill()


def wait(server: Server) -> None:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end and (server.process is None or server.process.poll() is None):
        try:
            urlopen(f"http://127.0.0.1:{server.port}/health", timeout=5)
            return
        except (URLError, OSError):
            time.sleep(1)
    raise SystemExit(f"{server.name} did not start; its own message is above.")


def measure(model: str, servers: Sequence[Server], asked: argparse.Namespace, figures: Figures) -> None:
    """A row for each server and each number of requests at once; the best of its turns counts."""
    draw = np.random.default_rng(0)
    times: dict[tuple[int, str], list[list[Asked]]] = {}
    spans: dict[tuple[int, str], list[float]] = {}
    for server in servers:
        load(server, 1, 1, asked, draw)  # the first request finds nothing ready
    for turn in range(asked.repeats):
        for many in asked.at_once:
            for server in servers if turn % 2 == 0 else servers[::-1]:
                begun = time.perf_counter()
                said = load(server, many, max(many, min(asked.requests, 4 * many)), asked, draw)
                spans.setdefault((many, server.name), []).append((time.perf_counter() - begun) / len(said))
                times.setdefault((many, server.name), []).append(said)
    for many in asked.at_once:
        for server in servers:
            mine, own = spans[many, server.name], times[many, NATIVE]
            both = times[many, server.name], own
            ttft, due = (min(float(np.mean([one.first for one in turn])) for turn in turns) for turns in both)
            prompt, whole = (float(np.mean([one.prompt for one in turns[0]])) for turns in both)
            figures.add(
                model=model, server=server.name, at_once=many, requests_s=1 / min(mine), ttft_ms=1e3 * ttft,
                prompt=prompt, times_requests=min(spans[many, NATIVE]) / min(mine), times_ttft=ttft / due,
                times_tokens=prompt / whole, noise=min(mine[1::2]) / min(mine[::2]),
            )  # fmt: skip


def load(server: Server, many: int, count: int, asked: argparse.Namespace, draw: np.random.Generator) -> list[Asked]:
    """So many requests, `many` of them at any time."""
    pictures = [picture(asked.side, draw) for _ in range(count)]
    with ThreadPoolExecutor(many) as clients:
        return [*clients.map(lambda own: server.ask(own, asked.new_tokens), pictures)]


def picture(side: int, draw: np.random.Generator) -> str:
    """One that was never shown before, as a request carries it."""
    blocks = Image.fromarray(draw.integers(0, 256, (BLOCKS, BLOCKS, 3), dtype=np.uint8))
    file = BytesIO()
    blocks.resize((side, side), Image.Resampling.NEAREST).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


if __name__ == "__main__":
    main(sys.argv[1:])
