"""Engines for the tests of this folder, and what transformers says under `vlmprune.prune`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

import vlmprune
from vlmprune.assets import CLIP, embedded_path
from vlmprune.serve.wanted import KEEP, QUERY

from .engine import about
from .models import fps_of, place_of, positions_of

ROOT = Path(__file__).resolve().parents[2]
TOKENS = 12
TOWER = str(embedded_path("llava") / CLIP)
QUERIES = ("what number is on the plate ?", "is there a red star ?")
PATIENCE = 1500  # seconds for an engine, most of which it takes to start


@dataclass(frozen=True)
class Prompt:
    question: str
    pictures: tuple[str, ...]
    videos: tuple[tuple[str, ...], ...] = ()  # the frames of each
    query: str | None = None  # what methods that read the question compare them with


def asking(prompts: Sequence[Prompt]) -> list[Prompt]:
    """Each prompt for two questions about its pictures, which its own words may not name."""
    return [replace(prompt, query=query) for prompt in prompts for query in QUERIES]


@dataclass
class Reply:
    tokens: list[int]
    prompt: int
    cached: int


@pytest.fixture(autouse=True, scope="session")
def needs_vllm() -> None:
    if find_spec("vllm") is None:
        pytest.skip("vLLM is not installed here: python3 tools/extras.py vllm makes an environment")


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A wide picture, and another one that is high."""
    scene = Image.open(ROOT / "docs/images/scene.png").convert("RGB")
    folder = tmp_path_factory.mktemp("pictures")
    scene.save(folder / "wide.png")
    scene.transpose(Image.Transpose.ROTATE_90).resize((72, 144)).save(folder / "high.png")
    return str(folder / "wide.png"), str(folder / "high.png")


@pytest.fixture(scope="session")
def prompts(pictures: tuple[str, str]) -> list[Prompt]:
    wide, high = pictures
    return [
        Prompt("What number is on the plate?", (wide,)),
        Prompt("What color is the sign?", (high,)),
        Prompt("Which picture shows a house?", (wide, high)),
    ]


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory, pictures: tuple[str, str]) -> list[Prompt]:
    """A video, one behind a picture, one that lasts longer than the prompt behind it, by its positions, and two."""
    folder = tmp_path_factory.mktemp("frames")
    scene = Image.open(pictures[0]).resize((100, 60))

    def frames(count: int, side: int) -> tuple[str, ...]:
        names = tuple(str(folder / f"{side}-{number}.png") for number in range(count))
        for number, name in enumerate(names):
            scene.rotate(11 * number).crop((2 * number, 0, 2 * number + side, side)).save(name)
        return names

    return [
        Prompt("What happens first?", (), (frames(8, 60),)),
        Prompt("What color is the sign?", pictures[1:], (frames(6, 50),)),
        Prompt("Why?", (), (frames(28, 30),)),
        Prompt("Which one is longer?", (), (frames(4, 60), frames(7, 40))),
    ]


@pytest.fixture(scope="session")
def variables(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Of a process in which this checkout is installed, as far as vLLM can tell."""
    spec = spec_from_file_location("vllm_shims", ROOT / "tools/vllm_shims.py")
    assert spec is not None and spec.loader is not None
    spec.loader.exec_module(shims := module_from_spec(spec))
    return os.environ | {
        "PYTHONPATH": shims.found(ROOT, tmp_path_factory.mktemp("installed")),
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # engines that run at once would all be bound to the first core
    }


def written(prompt: Prompt, processor: Any) -> str:
    content: list[dict[str, str]] = [{"type": "image"} for _ in prompt.pictures]
    content += [{"type": "video"}] * len(prompt.videos) + [{"type": "text", "text": prompt.question}]
    return processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)


def media(prompt: Prompt, fps: float | None) -> dict[str, Any]:
    """What a processor is given of a prompt besides its text.

    Args:
        fps: of the videos, where the model's processor asks for it.
    """
    images = [Image.open(name).convert("RGB") for name in prompt.pictures]
    videos = [np.stack([np.asarray(Image.open(name).convert("RGB")) for name in names]) for names in prompt.videos]
    given = ({"images": images} if images else {}) | ({"videos": videos} if videos else {})
    if videos and fps:
        given |= {"video_metadata": [about(len(video), fps) for video in videos], "do_sample_frames": False}
    return given


def options_of(keep: str | None, query: str | None) -> dict[str, str]:
    """What a prompt says to the processor."""
    return {name: said for name, said in ((KEEP, keep), (QUERY, query)) if said is not None}


Engine = Callable[..., list[list[Reply]]]


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where models are saved that are made for these tests."""
    return tmp_path_factory.mktemp("models")


@pytest.fixture
def engine(variables: dict[str, str], tmp_path: Path, prompts: list[Prompt], models: Path) -> Engine:
    """Runs the prompts, once each round, in an engine of their own; once for each of the budgets, if there are any."""

    def run(
        model: str, prune: list[Any], *, asked: Sequence[Prompt] = (), rounds: int = 1,
        keeps: tuple[str | None, ...] = (), penalty: float = 1.0, text_tower: str | None = None, **given: Any,
    ) -> list[list[Reply]]:  # fmt: skip
        place = place_of(model, models)
        processor = AutoProcessor.from_pretrained(place)
        texts = [
            (written(prompt, processor), prompt.pictures, prompt.videos, options_of(keep, prompt.query))
            for keep in keeps or [None]
            for prompt in asked or prompts
        ]
        told = {
            "model": str(place), "prune": prune, "positions": positions_of(model), "rounds": [texts] * rounds,
            "max_tokens": TOKENS, "engine": given, "fps": fps_of(model),
            "penalty": penalty, "request_keep": bool(keeps), "text_tower": text_tower,
            "out": str(tmp_path / "out.json"),
        }  # fmt: skip
        done = subprocess.run(
            [sys.executable, str(ROOT / "tests/vllm_plugin/engine.py")],
            input=json.dumps(told), env=variables, capture_output=True, text=True, timeout=PATIENCE,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(done.stderr[-6000:])
        said = json.loads((tmp_path / "out.json").read_text())
        return [[Reply(**reply) for reply in replies] for replies in said]

    return run


Reference = Callable[..., list[list[int]]]


@pytest.fixture(scope="session")
def reference(prompts: list[Prompt], models: Path) -> Reference:
    """The tokens of transformers' replies to the same prompts, greedily, under `vlmprune.prune`."""

    def run(
        model: str, recipe: str, asked: Sequence[Prompt] = (), penalty: float = 1.0, text_tower: str | None = None
    ) -> list[list[int]]:
        place = place_of(model, models)
        loaded = AutoModelForImageTextToText.from_pretrained(place, dtype=torch.float32).eval()
        processor = AutoProcessor.from_pretrained(place)
        tower = None if text_tower is None else vlmprune.TextTower.from_pretrained(text_tower, processor.tokenizer)
        session = vlmprune.prune(loaded, recipe, positions=positions_of(model), text_tower=tower, tokenizer=processor)
        said = []
        for prompt in asked or prompts:
            inputs = processor(text=written(prompt, processor), **media(prompt, fps_of(model)), return_tensors="pt")
            session.question = prompt.query
            with torch.no_grad(), session:
                length = {"max_new_tokens": TOKENS, "min_new_tokens": TOKENS}
                out = loaded.generate(**inputs, **length, do_sample=False, repetition_penalty=penalty)
            said.append(out[0, inputs["input_ids"].shape[1] :].tolist())
        return said

    return run
