"""What must hold on a GPU: every family in bfloat16 under sdpa and flash attention, float32 oracles, compiled decoding.

    python benchmarks/gpu_matrix.py --out benchmarks/results/gpu-matrix.json
    python benchmarks/gpu_matrix.py --models llava,qwen3_vl --checks identity,compiled
    python benchmarks/gpu_matrix.py --models llava-1.5-7b --layers 32

Models have random weights: the tiny ones of the test-suite, and two architectures of `vlmprune bench --random` with a
few decoder layers. Checks:

    identity   keep=1.0 gives the unpruned model's logits, bit for bit
    cached     pruned generation equals pruned forwards without a cache
    oracle     float32 (no TF32): pruned generation equals the masking oracle, the cutting oracle on recurrent models
    compiled   a static cache and decoding by torch.compile (CUDA graphs: mode "reduce-overhead") equal a dynamic cache,
               behind a cut before the language model; skipped where such steps are not compiled (layers with windows)

Where numbers round (cached, compiled), the limit is four times what the unpruned model shows in the same comparison.
A check that fails or raises is recorded, and the others go on; the file is written anew after each. Without CUDA it
runs on the CPU, without flash attention and with the compiler's front end alone. The exit status is 1 if anything
failed.

Not here: flash attention needs the package flash-attn; weights in 4 or 8 bits by bitsandbytes need that package, a GPU
and a saved checkpoint (bitsandbytes quantises while it loads).
"""

from __future__ import annotations

import argparse
import gc
import logging
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from transformers import CompileConfig
from transformers.utils import is_flash_attn_2_available
from transformers.utils.logging import set_verbosity_error

import vlmprune
from vlmprune.bench.load import machine
from vlmprune.bench.random_inputs import random_inputs, usual_visual
from vlmprune.bench.random_models import Architecture, random_model
from vlmprune.bench.store import write_json
from vlmprune.core.errors import UserError
from vlmprune.core.outputs import check_file
from vlmprune.models import adapter_for
from vlmprune.runtime.oracle import cutting_oracle, is_recurrent, masking_oracle
from vlmprune.testing import FAMILIES, image_numbers, prompt
from vlmprune.testing import alone as tiny_alone

RANDOM = ("llava-1.5-7b", "qwen2.5-vl-7b")
SDPA, FLASH = "sdpa", "flash_attention_2"
SAMPLES: list[list[int | None]] = [[0, 1], [2]]  # two images interleaved with text beside one: padded, unequal counts
PINNED = "random:0.7 > random@2:0.5"  # the same tokens whatever rounding does to scores
COMPILED = "random:0.5"  # steps behind a cut inside the language model are not compiled
SCORED = "divprune:0.7 > fastv@2:0.5"
FLOOR = {torch.float32: 1e-4, torch.bfloat16: 0.02}  # share of the largest logit that is rounding
TIMES = 4.0


@dataclass
class Cell:
    """One check of one model.

    Attributes:
        status: "ok", "failed", "error" (it raised) or "skipped".
        difference: largest difference of logits.
        limit: what it may be.
        detail: further figures, or why it was skipped, or the error.
    """

    model: str
    check: str
    attention: str
    dtype: str
    status: str = "ok"
    difference: float | None = None
    limit: float | None = None
    seconds: float = 0.0
    detail: dict[str, Any] = field(default_factory=dict)


@dataclass
class Found:
    difference: float
    limit: float
    detail: dict[str, Any] = field(default_factory=dict)


class NotThere(Exception):
    """The check is not for this model; the message says why."""


@dataclass
class Subject:
    """A model on the device in one dtype under one attention, with a prompt.

    Attributes:
        numbers: [B, S] number of the image that a prompt column shows; None where each stretch of slots is one.
    """

    model: Any
    inputs: dict[str, Tensor]
    numbers: Tensor | None
    steps: int

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype


def tiny_subject(name: str, steps: int, single: bool) -> Subject:
    family = FAMILIES[name]
    model = family.build()
    if single or is_recurrent(model):  # padded rows are not compiled; the cutting oracle takes one sample
        return Subject(model, tiny_alone(family, SAMPLES, 0), image_numbers(family, SAMPLES[:1]), steps)
    return Subject(model, prompt(family, SAMPLES), image_numbers(family, SAMPLES), steps)


def large_subject(name: str, layers: int, steps: int, device: str) -> Subject:
    model = random_model(Architecture(name, layers=layers), device)
    inputs = random_inputs(model, usual_visual(model), batch=2)
    torch.manual_seed(0)
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    for weight in model.parameters():
        if weight.dim() > 1:  # stronger than the usual initialisation, under which attention is nearly uniform
            nn.init.normal_(weight, std=1.0 if id(weight) in embeddings else weight[0].numel() ** -0.5)
    return Subject(model, inputs, None, steps)


def on_device(subject: Subject, attention: str, dtype: torch.dtype, device: str) -> Subject:
    if attention != SDPA:
        subject.model.set_attn_implementation(attention)
    subject.model.to(device, dtype)
    subject.model.generation_config.eos_token_id = None
    subject.inputs = {
        name: value.to(device, dtype) if value.is_floating_point() else value.to(device)
        for name, value in subject.inputs.items()
    }
    return subject


# ---------------------------------------------------------------------- checks


def generate(subject: Subject, **options: Any) -> tuple[Tensor, Tensor]:
    """New tokens [B, T] and the logits they were chosen from [B, T, V]."""
    out = subject.model.generate(
        **subject.inputs, max_new_tokens=subject.steps, do_sample=False, return_dict_in_generate=True,
        output_logits=True, **options,
    )  # fmt: skip
    return out.sequences[:, subject.inputs["input_ids"].shape[1] :], torch.stack(out.logits, dim=1).float()


def largest(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


def limit(subject: Subject, logits: Tensor, yardstick: float = 0.0) -> float:
    return max(FLOOR[subject.dtype] * float(logits.abs().max()), TIMES * yardstick)


def identity(subject: Subject) -> Found:
    tokens, logits = generate(subject)
    worst = 0.0
    for method in ("divprune", "hiprune", "visionzip", "fastv@2"):
        with vlmprune.prune(subject.model, f"{method}:1.0"):
            again = generate(subject)
        worst = max(worst, largest(again[1], logits))
        if not torch.equal(again[0], tokens):
            raise AssertionError(f"{method}:1.0 generates other tokens")
    return Found(worst, 0.0)


def cached(subject: Subject) -> Found:
    def apart() -> tuple[float, Tensor]:
        tokens, logits = generate(subject)
        worst = 0.0
        for step in range(subject.steps):
            again = subject.model(**longer(subject, tokens[:, :step]), use_cache=False, logits_to_keep=step + 1)
            worst = max(worst, largest(again.logits[:, -1].float(), logits[:, step]))
        return worst, logits

    yardstick, vanilla = apart()
    with vlmprune.prune(subject.model, PINNED, positions="original") as session:
        difference, logits = apart()
    detail = {"unpruned": yardstick, "pruned to": session.last.tokens, "effect": largest(logits[:, 0], vanilla[:, 0])}
    return Found(difference, limit(subject, logits, yardstick), detail)


def longer(subject: Subject, tokens: Tensor) -> dict[str, Tensor]:
    """The prompt with these tokens behind it."""
    later = {"attention_mask": 1, "mm_token_type_ids": 0, "token_type_ids": adapter_for(subject.model).later_token_type}
    grown = {**subject.inputs, "input_ids": torch.cat([subject.inputs["input_ids"], tokens], dim=1)}
    for name, value in later.items():
        if name in grown:
            grown[name] = nn.functional.pad(grown[name], (0, tokens.shape[1]), value=value)
    return grown


def oracle(subject: Subject) -> Found:
    model, adapter = subject.model, adapter_for(subject.model)
    with vlmprune.prune(model, SCORED) as session:
        tokens, logits = generate(subject)
    policies = {
        stage.method.decoder_layer(adapter.info) or 0: stage.method.positions(adapter.info)
        for stage in vlmprune.recipe(SCORED).stages
    }
    numbers = None if subject.numbers is None else subject.numbers.to(model.device)
    reference = cutting_oracle if is_recurrent(model) else masking_oracle
    expected = reference(model, subject.inputs, tokens, session.last, policies, numbers)
    effect = largest(logits[:, 0], generate(subject)[1][:, 0])
    return Found(
        largest(logits, expected), limit(subject, logits), {"effect": effect, "pruned to": session.last.tokens}
    )


def compiled(subject: Subject) -> Found:
    subject.steps = max(subject.steps, 3)  # under a session the first step behind the prompt is watched, not compiled
    config: Any = CompileConfig(mode="reduce-overhead")
    if subject.model.device.type == "cpu":  # by the compiler's front end alone
        config = CompileConfig(backend="eager")
        config.mode, config._compile_all_devices = None, True

    def apart() -> tuple[float, Tensor, dict[str, Any]]:
        torch.compiler.reset()
        torch._dynamo.utils.counters.clear()
        tokens, logits = generate(subject)
        options: dict[str, Any] = {"cache_implementation": "static", "compile_config": config}
        generate(subject, **options)  # compiles, and records graphs
        start = time.perf_counter()
        other, static = generate(subject, **options)
        seconds = time.perf_counter() - start
        counters = torch._dynamo.utils.counters
        figures = {
            "seconds": seconds,
            "graphs": counters["stats"]["unique_graphs"],
            "breaks": sum(counters["graph_break"].values()),
            "same tokens": bool(torch.equal(tokens, other)),
        }
        return while_agreed(tokens, logits, other, static), logits, figures

    yardstick, _, plain = apart()
    with vlmprune.prune(subject.model, COMPILED, positions="original"):
        difference, logits, figures = apart()
    if not plain["graphs"]:
        raise AssertionError("nothing of the unpruned model was compiled")
    if not figures["graphs"] and difference <= limit(subject, logits, yardstick):
        raise NotThere("the steps behind a cut are not compiled, and equal those of a dynamic cache")
    return Found(
        difference, limit(subject, logits, yardstick), {"unpruned": {**plain, "difference": yardstick}, **figures}
    )


def while_agreed(tokens: Tensor, logits: Tensor, other: Tensor, others: Tensor) -> float:
    """Largest difference up to the first token that rounding decided differently, row by row."""
    worst = 0.0
    for row in range(len(tokens)):
        unequal = (tokens[row] != other[row]).nonzero()
        steps = int(unequal[0]) + 1 if len(unequal) else tokens.shape[1]
        worst = max(worst, largest(logits[row, :steps], others[row, :steps]))
    return worst


CHECKS: dict[str, tuple[Callable[[Subject], Found], torch.dtype]] = {
    "identity": (identity, torch.bfloat16),
    "cached": (cached, torch.bfloat16),
    "oracle": (oracle, torch.float32),
    "compiled": (compiled, torch.bfloat16),
}


# ---------------------------------------------------------------------- the run


def attentions(check: str) -> list[str]:
    return [SDPA] if check == "oracle" else [SDPA, FLASH]


def run_cell(cell: Cell, args: argparse.Namespace) -> None:
    """Fill in the cell; nothing is raised but an interruption by the user."""
    if cell.attention == FLASH and not is_flash_attn_2_available():
        cell.status, cell.detail = "skipped", {"why": "flash-attn is not installed, or there is no GPU"}
        return
    check, dtype = CHECKS[cell.check]
    start = time.perf_counter()
    try:
        if cell.model in FAMILIES:
            subject = tiny_subject(cell.model, args.new_tokens, cell.check == "compiled")
        else:
            subject = large_subject(cell.model, args.layers, args.new_tokens, args.device)
        with torch.no_grad():
            found = check(on_device(subject, cell.attention, dtype, args.device))
        cell.difference, cell.limit, cell.detail = found.difference, found.limit, found.detail
        cell.status = "ok" if found.difference <= found.limit else "failed"  # NaN fails
    except NotThere as why:
        cell.status, cell.detail = "skipped", {"why": str(why)}
    except Exception as error:
        cell.status = "error"
        cell.detail = {"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
    cell.seconds = round(time.perf_counter() - start, 2)
    subject = None  # type: ignore[assignment]
    gc.collect()
    if args.device == "cuda":
        torch.cuda.empty_cache()


def told(cell: Cell) -> str:
    if cell.difference is None:
        return cell.status
    return f"{cell.status} {cell.difference:.1e}" + (f" of {cell.limit:.1e}" if cell.limit else "")


def sheet(cells: list[Cell]) -> Table:
    table = Table(title="largest difference of logits, and its limit", title_justify="left")
    columns = list(dict.fromkeys((cell.check, cell.attention) for cell in cells))
    table.add_column("model", no_wrap=True)
    for check, attention in columns:
        table.add_column(f"{check}\n{attention}", no_wrap=True)
    for model in dict.fromkeys(cell.model for cell in cells):
        own = {(cell.check, cell.attention): told(cell) for cell in cells if cell.model == model}
        table.add_row(model, *(own.get(column, "") for column in columns))
    return table


def versions(device: str) -> dict[str, Any]:
    place = machine(nn.Linear(1, 1, device=device).weight)
    packages = {"torch": torch.__version__, "transformers": transformers.__version__, "vlmprune": vlmprune.__version__}
    if is_flash_attn_2_available():
        import flash_attn

        packages["flash-attn"] = flash_attn.__version__
    return {**place, **packages}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", help=f"names, comma-separated: of vlmprune.testing, or {', '.join(RANDOM)}")
    parser.add_argument("--checks", default=",".join(CHECKS), help="comma-separated (default: all)")
    parser.add_argument("--layers", type=int, default=4, help="decoder layers of the larger geometries (default: 4)")
    parser.add_argument("--new-tokens", type=int, help="tokens to generate (default: 12, on a CPU 4)")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    parser.add_argument("--force", action="store_true", help="overwrite a file that is there")
    args = parser.parse_args(arguments)
    args.device = "cuda" if torch.cuda.is_available() else "cpu"
    args.new_tokens = args.new_tokens or (12 if args.device == "cuda" else 4)
    names = args.models.split(",") if args.models else [*FAMILIES, *(RANDOM if args.device == "cuda" else ())]
    checks = args.checks.split(",")
    for kind, given, known in (("model", names, [*FAMILIES, *RANDOM]), ("check", checks, list(CHECKS))):
        for name in given:
            if name not in known:
                parser.error(f"there is no {kind} {name!r}: choose from {', '.join(known)}")
    try:
        if args.out:
            check_file(args.out, "report", force=args.force)
    except UserError as error:
        parser.error(error.typed)
    set_verbosity_error()
    torch._logging.set_logs(dynamo=logging.ERROR)  # graph breaks are counted, not told
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    console = Console()
    if not console.is_terminal:  # a log or a pipe has no width to fit
        console = Console(width=240)
    cells = [
        Cell(model, check, attention, str(CHECKS[check][1]).removeprefix("torch."))
        for model in names
        for check in checks
        for attention in attentions(check)
    ]
    report = {"machine": versions(args.device), "settings": {"layers": args.layers, "new_tokens": args.new_tokens}}
    for number, cell in enumerate(cells, 1):
        run_cell(cell, args)
        place = f"{number:>{len(str(len(cells)))}}/{len(cells)} {cell.model} · {cell.check} · {cell.attention}"
        console.print(f"{place} · {cell.dtype}: {told(cell)} ({cell.seconds:.1f} s)", highlight=False)
        if cell.status == "error":
            console.print(f"    {cell.detail['error'].splitlines()[0]}", highlight=False, markup=False)
        if args.out:
            write_json(args.out, {**report, "cells": [asdict(done) for done in cells[:number]]})
    console.print(sheet(cells))
    bad = [cell for cell in cells if cell.status in ("failed", "error")]
    console.print(f"{len(cells)} checks, {len(bad)} failed", highlight=False)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
