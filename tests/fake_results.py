"""Result folders with invented replies, written through the store, for tests of what reads them."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from vlmprune.assets.questions import COLORS
from vlmprune.bench.batch import record_of
from vlmprune.bench.questions import Questions
from vlmprune.bench.store import VANILLA, Record, Run, Store
from vlmprune.data.sample import Sample
from vlmprune.tasks import generated_tasks
from vlmprune.tasks.canvas import FIXED
from vlmprune.tasks.task import Place, Task

METHODS = ("random", "random@2", "downsample", "divprune", "hiprune", "visionzip", "fastv@2", "dart@2")
_SKILL = {
    "random": 0.7,
    "downsample": 0.75,
    "divprune": 0.9,
    "hiprune": 0.8,
    "visionzip": 0.78,
    "fastv": 0.85,
    "dart": 0.88,
}


SIX = tuple(generated_tasks())[:6]  # enough for a table


def fill(
    folder: Path,
    models: Sequence[str] = ("llava", "qwen2_5_vl"),
    methods: Sequence[str] = METHODS,
    keeps: Sequence[float | int] = (0.333, 0.222, 0.111),
    seeds: Sequence[int] = (0,),
    tasks: Sequence[str] = SIX,
    n: int = 40,
    reply: Callable[[Run, Sample], str] | None = None,
) -> None:
    """Write finished runs of vanilla and the methods.

    Without `reply`, a reply's chance to be right falls with the budget. (Readers judge replies themselves.)
    """
    with Store(folder) as store:
        runs = []
        for model in models:
            for task in (generated_tasks()[name] for name in tasks):
                samples = list(Questions(task, Place(), n))
                rows = [(VANILLA, 1.0), *((m, k) for m in methods for k in keeps)]
                for run in (run for row in rows for run in make_runs(model, task, samples, *row, seeds)):
                    records = [make_record(run, sample) for sample in samples]
                    if reply is not None:
                        said = [reply(run, sample) for sample in samples]
                        records = [replace(record, output=text) for record, text in zip(records, said, strict=True)]
                    store.append(run, records)
                    about = {"dimension": task.dimension, "metric": task.metric.name, "chance": task.chance}
                    store.finish(run, **about, shape=None, made={"device": "cpu", "python": "3.11", "commit": "abc"})
                    runs.append(run)
        store.compare(runs)


def make_runs(
    model: str, task: Task, samples: Sequence[Sample], method: str, keep: float | int, seeds: Sequence[int]
) -> list[Run]:
    """A run for each seed where the method draws."""
    run = make_run(model, task, samples, method, keep)
    return [replace(run, seed=seed) for seed in seeds] if method.startswith("random") else [run]


def make_run(model: str, task: Task, samples: Sequence[Sample], method: str, keep: float | int) -> Run:
    return Run(
        model=model,
        weights="0123456789abcdef",
        dtype="float32",
        attention="sdpa",
        method=method,
        recipe=VANILLA if method == VANILLA else f"{method}:{keep}",
        keep=keep,
        positions=None,
        task=task.name,
        version=task.version,
        samples="feedbeef",
        n=len(samples),
        protocol="plain",
        canvas=str(FIXED),
        generation={"do_sample": False, "max_new_tokens": task.max_new_tokens},
        seed=None,
        batch_size=1,
        versions={"torch": "2.13.0", "transformers": "5.23.0", "vlmprune": "0.1.0"},
    )


def make_record(run: Run, sample: Sample) -> Record:
    share = run.keep if isinstance(run.keep, float) else run.keep / 196
    kept = 196 if run.method == VANILLA else round(share * 196)
    layer = int(run.method.partition("@")[2] or 0)
    return record_of(
        sample,
        _reply(run, sample),
        sample.kind,
        input_tokens=196 + len(sample.question.split()),
        visual_before=196,
        visual_encoded=196,
        visual_kept=kept,
        visual_entering=(layer * 196 + (5 - layer) * kept) / 5,
        stages=() if run.method == VANILLA else ((layer, kept),),
    )


def _reply(run: Run, sample: Sample) -> str:
    draw = np.random.default_rng(zlib.crc32(f"{run.model} {run.recipe} {run.seed or ''} {sample.id}".encode()))
    share = run.keep if isinstance(run.keep, float) else run.keep / 196
    skill = 0.97 if run.method == VANILLA else _SKILL.get(run.method.split("@")[0], 0.8) * share**0.08
    right = draw.random() < skill - (0.4 * (1 - share) if sample.category == "ocr" else 0)
    return sample.answers[0] if right else _wrong(sample, draw)


def _wrong(sample: Sample, draw: np.random.Generator) -> str:
    if sample.kind == "yesno":
        return "no" if sample.answers[0] == "yes" else "yes"
    if draw.random() < 0.03:
        return ""
    if sample.kind == "choice":
        return next(mark for mark in ("(b)", "(c)") if mark != sample.answers[0])
    return str(draw.choice([color for color in COLORS if color != sample.answers[0]]))
