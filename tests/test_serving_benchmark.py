"""benchmarks/serving.py without vLLM: its models and commands, and figures of made-up servers as a table."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from transformers import AutoConfig

from vlmprune.models.processors import load_processor
from vlmprune.serve.vllm.asked import asked_in, overrides
from vlmprune.serve.vllm.families import apart_of, on_meta
from vlmprune.serve.vllm.launch import has_axes

ROOT = Path(__file__).parent.parent
MODELS = ("llava", "qwen2_5_vl")


@pytest.fixture(scope="module")
def scripts() -> Iterator[tuple[Any, Any]]:
    """The script, and what makes its table."""
    folders = [str(ROOT / "benchmarks"), str(ROOT / "tools")]
    sys.path[:0] = folders
    try:
        yield import_module("serving"), import_module("docs_serving")
    finally:
        for folder in folders:
            sys.path.remove(folder)


@pytest.mark.parametrize("model", MODELS)
def test_random_models_have_576_visual_tokens(model: str, scripts: tuple[Any, Any], tmp_path: Path) -> None:
    script, _ = scripts
    layers, width = (script.options_of([]).layers, script.options_of([]).width)
    place = script.save(model, tmp_path / model, layers, width)
    config, processor = AutoConfig.from_pretrained(place), load_processor(place)
    assert config.text_config.num_hidden_layers == layers and config.text_config.hidden_size == width
    shown = Image.new("RGB", (336, 336))
    inputs = dict(processor(text=processor.image_token, images=[shown], return_tensors="pt"))
    assert int((inputs["input_ids"] == config.image_token_id).sum()) == 576
    made = on_meta(config)
    sizes = {name: sum(p.numel() for p in made.get_submodule(name).parameters()) for name, _ in made.named_children()}
    assert sizes["language_model"] > 0.9 * sum(sizes.values()), "the language model must do most of the work"
    asked = asked_in(overrides("divprune", 0.25))
    parts = [len(inputs["pixel_values"])]
    [count] = apart_of(made, asked, has_axes(config)).counts("image", inputs, parts)
    assert count == (576, 144)


def test_the_four_servers_differ_in_nothing_else(scripts: tuple[Any, Any]) -> None:
    script, _ = scripts
    found = script.commands("llava", "divprune", 0.25, "cpu", ["--seed", "3"])
    assert list(found) == [script.NATIVE, script.BACKEND, "divprune:1", "divprune:0.25"]
    native, backend, full, quarter = found.values()
    assert backend == [*native, "--model-impl", "transformers"] and native[-2:] == ["--seed", "3"]
    for command, keep in ((full, 1.0), (quarter, 0.25)):
        given = command.index("--hf-overrides") + 1
        assert json.loads(command[given]) == overrides("divprune", keep)
        assert [word for word in command if word not in native and "vlmprune" not in word] == [
            "--hf-overrides", "--middleware",
        ]  # fmt: skip


class Answers(BaseHTTPRequestHandler):
    """A reply in two parts and what was used, as vLLM streams it."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.end_headers()
        for part in ({"choices": [{}]}, {"choices": [{}]}, {"choices": [], "usage": {"prompt_tokens": self.prompt}}):
            self.wfile.write(f"data: {json.dumps(part)}\n\n".encode())
        self.wfile.write(b"data: [DONE]\n\n")

    def log_message(self, *_: object) -> None:
        pass


def test_figures_of_servers_side_by_side(scripts: tuple[Any, Any], tmp_path: Path) -> None:
    script, docs = scripts
    names = [script.NATIVE, script.BACKEND, "divprune:1", "divprune:0.25"]
    listening = [
        ThreadingHTTPServer(("127.0.0.1", 0), type("Own", (Answers,), {"prompt": 600 if at < 3 else 168}))
        for at in range(len(names))
    ]
    for server in listening:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    asked = script.options_of(["--small", "--model", "llava", "--out", str(tmp_path / "serving.json")])
    figures = script.Figures(asked)
    figures.made["machine"]["vllm"] = "0.32.0"
    servers = [script.Server(name, own.server_port) for name, own in zip(names, listening, strict=True)]
    try:
        script.measure("llava", servers, asked, figures)
    finally:
        for server in listening:
            server.shutdown()
            server.server_close()
    rows = json.loads((tmp_path / "serving.json").read_text())["rows"]
    assert [(row["at_once"], row["server"]) for row in rows] == [(many, name) for many in (1, 2) for name in names]
    assert [row["times_tokens"] for row in rows] == [1, 1, 1, 0.28] * 2
    assert rows[0]["times_requests"] == rows[0]["times_ttft"] == 1 and all(row["requests_s"] > 0 for row in rows)
    page = docs.vllm_speed(tmp_path / "serving.json")
    assert page.count("`divprune:0.25`") == 2 and "vLLM 0.32.0" in page
    assert "Not measured" in docs.vllm_speed(tmp_path / "none.json")


def test_no_picture_comes_twice(scripts: tuple[Any, Any]) -> None:
    script, _ = scripts
    draw = np.random.default_rng(0)
    shown = [script.picture(336, draw) for _ in range(3)]
    assert len({*shown}) == 3 and all(len(one) < 40_000 for one in shown)
