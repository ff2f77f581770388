"""Throughput and latency of vLLM, native and pruned, at several numbers of requests at once.

    python benchmarks/serving.py llava-hf/llava-1.5-7b-hf --method divprune --keep 0.25 --out DIR
    python benchmarks/serving.py llava --dry-run            only print what would be run

Starts one server after another, native and pruned with the same options, and asks each with `vllm bench serve`: random
pictures, so that no cache hides the encoder. Options behind `--` are for `vllm serve`. What is measured goes to
DIR/serving.json, and the table to the screen: requests a second, time to the first token, and tokens of a prompt.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

from vlmprune.core.recipe import Recipe, recipe
from vlmprune.serve.vllm.launch import vllm_command

PATIENCE = 1800  # seconds until a server is there
CONCURRENCY = (1, 4, 16, 32)
MAIN = [sys.executable, "-m", "vllm.entrypoints.cli.main"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model")
    parser.add_argument("--method", default="divprune")
    parser.add_argument("--keep", type=float, default=0.25)
    parser.add_argument("--side", type=int, default=672, help="of the pictures, in pixels")
    parser.add_argument("--concurrency", type=int, nargs="+", default=CONCURRENCY)
    parser.add_argument("--each", type=int, default=8, help="requests for each that runs at once")
    parser.add_argument("--port", type=int, default=8011)
    parser.add_argument("--out", type=Path, default=Path("serving"))
    parser.add_argument("--dry-run", action="store_true")
    given = sys.argv[1:]
    behind = given.index("--") if "--" in given else len(given)
    asked = parser.parse_args(given[:behind])
    servers = commands(asked.model, recipe(asked.method, asked.keep), asked.port, given[behind + 1 :])
    measured = []
    for name, server in servers.items():
        clients = [client(server, asked, many, name) for many in asked.concurrency]
        if asked.dry_run:
            print(*(shlex.join(command) for command in [server, *clients]), sep="\n")
            continue
        asked.out.mkdir(parents=True, exist_ok=True)
        measured += measure(name, server, clients, asked)
    if measured:
        (asked.out / "serving.json").write_text(json.dumps(measured, indent=1))
        print(table(measured))


def commands(model: str, pruned: Recipe, port: int, options: list[str]) -> dict[str, list[str]]:
    """The servers: vLLM's own model, its backend for transformers' models, and the latter pruned."""
    full = vllm_command(model, pruned, port=port, arguments=options)
    at = full.index("--hf-overrides")
    native = full[:at] + full[at + 2 :]
    return {"native": native, "transformers backend": [*native, "--model-impl", "transformers"], str(pruned): full}


def client(server: list[str], asked: Any, many: int, name: str) -> list[str]:
    """`vllm bench serve` with this many requests at once."""
    pictures = {"--random-mm-limit-mm-per-prompt": '{"image":1,"video":0}'}
    pictures["--random-mm-bucket-config"] = f"{{({asked.side},{asked.side},1):1.0}}"
    place, served = server[server.index("serve") + 1], server[server.index("--served-model-name") + 1]
    return [
        *MAIN, "bench", "serve", "--backend", "openai-chat", "--endpoint", "/v1/chat/completions",
        "--port", str(asked.port), "--model", place, "--served-model-name", served, "--dataset-name", "random-mm",
        "--random-mm-base-items-per-request", "1", *(word for pair in pictures.items() for word in pair),
        "--random-input-len", "32", "--random-output-len", "32", "--ignore-eos",
        "--num-prompts", str(asked.each * many), "--max-concurrency", str(many),
        "--save-result", "--result-dir", str(asked.out), "--result-filename", f"{name.split(':')[0]}-{many}.json",
    ]  # fmt: skip


def measure(name: str, server: list[str], clients: list[list[str]], asked: Any) -> list[dict[str, Any]]:
    """What the clients measure of one server, one after another."""
    process = subprocess.Popen(server)
    try:
        wait(process, asked.port)
        found = []
        for many, command in zip(asked.concurrency, clients, strict=True):
            subprocess.run(command, check=True)
            result = json.loads((asked.out / command[-1]).read_text())
            found.append({"server": name, "at once": many, **result})
        return found
    finally:
        process.terminate()
        process.wait()


def wait(process: subprocess.Popen[bytes], port: int) -> None:
    """Until the server answers."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end and process.poll() is None:
        try:
            urlopen(f"http://127.0.0.1:{port}/health", timeout=5)
            return
        except (URLError, OSError):
            time.sleep(2)
    raise SystemExit("The server did not start; its own message is above.")


def table(measured: list[dict[str, Any]]) -> str:
    """As Markdown."""
    lines = [
        "| server | at once | requests/s | mean TTFT, ms | tokens of a prompt |",
        "| --- | --- | --- | --- | --- |",
    ]
    for one in measured:
        prompt = one["total_input_tokens"] / max(one["completed"], 1)
        cells = f"{one['request_throughput']:.2f} | {one['mean_ttft_ms']:.0f} | {prompt:.0f}"
        lines.append(f"| {one['server']} | {one['at once']} | {cells} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
