"""Time and memory of pruned against unpruned generation, measured side by side.

    python benchmarks/speed.py                                    the embedded models
    python benchmarks/speed.py --random llava-1.5-7b --layers 4   a real geometry with random weights
    python benchmarks/speed.py --model llava-hf/llava-1.5-7b-hf   a model of your own

The embedded models are so small that launching an operation costs more than the operation: pruning saves them little.
Random weights give the right times for a real geometry, and answers that mean nothing.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForImageTextToText, LlavaConfig, Qwen2_5_VLConfig
from transformers.utils import logging

from vlmprune.bench.load import load_model, machine
from vlmprune.bench.protocol import Asker, protocol_for
from vlmprune.bench.runner import METHODS, split_methods, variants_of
from vlmprune.bench.store import write_json
from vlmprune.bench.timing import Spread, Timing, measure
from vlmprune.core.budget import parse_keep
from vlmprune.core.errors import UserError
from vlmprune.core.outputs import check_file
from vlmprune.tasks import generated_tasks
from vlmprune.tasks.canvas import canvas_for
from vlmprune.tasks.task import Place

RANDOM = ("llava-1.5-7b", "qwen2.5-vl-7b")
TEXT_TOKENS = 40
LLAMA = {"model_type": "llama", "vocab_size": 32064}  # transformers' defaults are LLaVA-1.5-7B otherwise
QWEN: dict[str, Any] = {
    "text_config": {
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
    },
    "vision_config": {"hidden_size": 1280, "intermediate_size": 3420, "out_hidden_size": 3584},
}


def geometry(name: str) -> Any:
    """The configuration of one of `RANDOM`."""
    return LlavaConfig(text_config=LLAMA) if name == "llava-1.5-7b" else Qwen2_5_VLConfig(**QWEN)


def random_model(config: Any, layers: int | None, batch: int, device: str) -> tuple[Any, dict[str, torch.Tensor]]:
    """A model with random weights, and random inputs of one image a sample.

    Args:
        config: of a LLaVA or a Qwen2.5-VL.
        layers: decoder layers, all that the configuration has when None.
    """
    if layers is not None:
        config.text_config.num_hidden_layers = layers
        if getattr(config.text_config, "layer_types", None):
            config.text_config.layer_types = config.text_config.layer_types[:layers]
    vision, is_llava = config.vision_config, config.model_type == "llava"
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForImageTextToText.from_config(config, dtype=dtype).eval()
    if is_llava:
        images = {"pixel_values": torch.randn(batch, 3, vision.image_size, vision.image_size)}
        slots = (vision.image_size // vision.patch_size) ** 2
    else:
        rows = cols = 48  # patches; with the usual 14 pixels a picture of 672 x 672 and 576 visual tokens
        width = 3 * vision.temporal_patch_size * vision.patch_size**2
        thw = torch.tensor([[1, rows, cols]] * batch)
        images = {"pixel_values": torch.randn(batch * rows * cols, width), "image_grid_thw": thw}
        slots = rows * cols // vision.spatial_merge_size**2
    text = torch.randint(3, min(1000, config.text_config.vocab_size) - 10, (batch, TEXT_TOKENS))
    image = torch.full((batch, slots), config.image_token_id)
    ids = torch.cat([text[:, :10], image, text[:, 10:]], dim=1)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **images}
    if not is_llava:
        inputs["mm_token_type_ids"] = (ids == config.image_token_id).int()
    # A random model would say placeholders too, which stand for images that are not there.
    model.generation_config.suppress_tokens = [config.image_token_id]
    return model, {k: v.to(device, dtype) if v.is_floating_point() else v.to(device) for k, v in inputs.items()}


def loaded_model(name: str, batch: int) -> tuple[Any, Any]:
    """A model and a batch of generated scenes with questions."""
    loaded = load_model(name)
    task, config = generated_tasks()["synth-ocr"], loaded.model.config
    samples = list(islice(task.samples(Place(canvas_for(config))), batch))
    inputs = Asker(protocol_for(loaded.processor), task, loaded.processor, config.model_type).inputs(samples)
    return loaded.model, inputs.to(loaded.model.device, loaded.model.dtype)


def sheet(title: str, timings: list[Timing]) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("recipe", no_wrap=True)
    for name in ("tokens", "vision", "method", "prefill", "decode/token", "total", "speed-up", "peak MB", "KV MB"):
        table.add_column(name, justify="right", no_wrap=True)
    for timing in timings:
        parts = (timing.vision, timing.method, timing.prefill, timing.decode, timing.total)
        table.add_row(
            timing.name,
            "all" if timing.tokens is None else f"{timing.tokens[0]:.0f} > {timing.tokens[1]:.0f}",
            *(milliseconds(part) for part in parts),
            ratio(timing.speedup(timings[0])),
            f"{timing.peak_bytes / 2**20:.1f}",
            f"{timing.kv_bytes / 2**20:.2f}",
        )
    return table


def milliseconds(spread: Spread) -> str:
    return f"{1e3 * spread.median:.1f} ({1e3 * spread.low:.1f}-{1e3 * spread.high:.1f})"


def ratio(spread: Spread) -> str:
    return f"{spread.median:.2f}x ({spread.low:.2f}-{spread.high:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", action="append", help="embedded name, folder or hub id; may be repeated")
    parser.add_argument("--random", choices=RANDOM, help="a geometry with random weights instead of a model")
    parser.add_argument("--layers", type=int, help="decoder layers of --random")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--keep", type=parse_keep, default=0.222)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--new-tokens", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    parser.add_argument("--force", action="store_true", help="overwrite a file that is there")
    args = parser.parse_args()
    if args.new_tokens < 2:
        parser.error("--new-tokens must be at least 2")
    logging.set_verbosity_error()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        if args.out:
            check_file(args.out, "report", force=args.force)
        recipes = [None, *(v.recipe for text in split_methods(args.methods) for v in variants_of(text, [args.keep]))]
    except UserError as error:
        parser.error(error.typed)
    console = Console()
    if not console.is_terminal:  # a log or a pipe has no width to fit
        console = Console(width=200)
    report = {}
    for name in [args.random] if args.random else args.model or ["llava", "qwen2_5_vl"]:
        try:
            model, inputs = (
                random_model(geometry(name), args.layers, args.batch, device)
                if args.random
                else loaded_model(name, args.batch)
            )
        except UserError as error:
            parser.error(error.typed)
        timings = measure(model, inputs, recipes, args.new_tokens, args.repeats)
        place = machine(model)
        console.print(sheet(f"{name}, batch {args.batch}, {place['device']}: milliseconds, median (range)", timings))
        report[name] = {"machine": place, "timings": [asdict(timing) for timing in timings]}
    if args.out:
        write_json(args.out, report)


if __name__ == "__main__":
    main()
