"""What it saves to run the configurations of a plan together: the tower once a batch, shared decoder layers once.

    python benchmarks/sharing.py

runs the default methods at their three budgets on the embedded models, together and each configuration alone, with the
model loaded in both cases, checks that all replies are equal, and writes benchmarks/results/sharing.json: processor
seconds of each, and their ratio. Together and alone take turns, `--repeats` times.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from vlmprune.assets import embedded_names
from vlmprune.bench.load import Loaded, load_model
from vlmprune.bench.plan import Plan, Variant
from vlmprune.bench.runner import ModelBench
from vlmprune.bench.store import Store, load_records, load_results
from vlmprune.bench.worker import Here, Worker

OUT = Path(__file__).parent / "results" / "sharing.json"
Replies = dict[tuple[str, str], list[str]]


def run(plan: Plan, loaded: Loaded, variants: Sequence[Variant]) -> tuple[float, Replies]:
    """Processor seconds, and the replies by recipe and task."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.process_time()
        with Store(Path(folder) / "results") as store:
            bench = ModelBench(plan, list(variants), Here(Worker(plan, loaded, variants)), store)
            bench.compute(0, lambda _: None)
        seconds = time.process_time() - start
        results = load_results(Path(folder) / "results")
        replies = {(one.recipe, one.task): [r.output for r in load_records(one)] for one in results}
    return seconds, replies


def measure(name: str, each: int, repeats: int) -> dict[str, object]:
    plan = Plan(models=(name,), limit=each, device="cpu")
    loaded, variants = load_model(name, "cpu"), plan.variants()
    run(plan, loaded, variants[:2])  # warms up
    together, alone = [], []
    for _ in range(repeats):
        seconds, replies = run(plan, loaded, variants)
        together.append(seconds)
        apart = [run(plan, loaded, [variant]) for variant in variants]
        alone.append(sum(seconds for seconds, _ in apart))
        if replies != {key: said for _, found in apart for key, said in found.items()}:
            raise SystemExit(f"{name}: the replies differ.")
    return {
        "configurations": len(variants),
        "together_seconds": [round(value, 2) for value in together],
        "alone_seconds": [round(value, 2) for value in alone],
        "ratio": round(statistics.median(alone) / statistics.median(together), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=32, help="of each task (default: 32)")
    parser.add_argument("--repeats", type=int, default=3, help="(default: 3)")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    found = {name: measure(name, asked.questions, asked.repeats) for name in embedded_names()}
    OUT.write_text(json.dumps({"questions": asked.questions, "models": found}, indent=1) + "\n", encoding="utf-8")
    print(OUT.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
