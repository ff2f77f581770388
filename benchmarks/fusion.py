"""Whether Prune-Aware Fusion moves the last logits of the embedded models towards those of the unpruned model.

    python benchmarks/fusion.py

writes benchmarks/results/fusion.json: for each model and method the mean L2 distance of the logits after the prompt to
the unpruned model's, with and without fusion, the mean of its paired change with a 95 % bootstrap interval, and for how
many of the questions fusion came nearer.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import vlmprune
from vlmprune.assets import embedded_names
from vlmprune.bench.questions import Questions
from vlmprune.tasks import generated_tasks
from vlmprune.tasks.canvas import canvas_for
from vlmprune.tasks.task import Place

KEEP = 0.1
PAIRS = {
    "hilo": (f"hilo:{KEEP}", f"hilo(lambda_=0):{KEEP}"),
    "fuse(divprune)": (f"fuse(divprune:{KEEP})@2", f"fuse(divprune:{KEEP}, lambda_=0)@2"),
}
OUT = Path(__file__).parent / "results" / "fusion.json"


def prompts(model: Any, processor: Any, each: int) -> Iterator[dict[str, Tensor]]:
    """`each` questions of every task."""
    for task in generated_tasks().values():
        for sample in Questions(task, Place(canvas_for(model.config)), each):
            words = [{"type": "image"}, {"type": "text", "text": sample.question}]
            text = processor.apply_chat_template([{"role": "user", "content": words}], add_generation_prompt=True)
            yield processor(images=[*sample.images], text=[text], return_tensors="pt")


def last_logits(model: Any, inputs: dict[str, Tensor], recipe: str | None) -> Tensor:
    if recipe is None:
        return model(**inputs).logits[0, -1]
    with vlmprune.prune(model, recipe):
        return model(**inputs).logits[0, -1]


@torch.no_grad()
def measure(name: str, each: int) -> dict[str, dict[str, Any]]:
    model, processor = vlmprune.load_embedded(name)
    found: dict[str, list[tuple[float, float]]] = {method: [] for method in PAIRS}
    for inputs in prompts(model, processor, each):
        whole = last_logits(model, inputs, None)
        for method, pair in PAIRS.items():
            fused, plain = (float((last_logits(model, inputs, recipe) - whole).norm()) for recipe in pair)
            found[method].append((fused, plain))
    return {method: summary(np.array(pairs)) for method, pairs in found.items()}


def summary(pairs: np.ndarray) -> dict[str, Any]:
    """Of distances [questions, 2], with fusion and without."""
    change = 100 * (pairs[:, 0] - pairs[:, 1]) / pairs[:, 1].mean()
    again = np.random.default_rng(0).integers(len(change), size=(2000, len(change)))
    return {
        "questions": len(pairs),
        "with_fusion": round(float(pairs[:, 0].mean()), 3),
        "without": round(float(pairs[:, 1].mean()), 3),
        "change_percent": round(float(change.mean()), 1),
        "interval": [round(float(x), 1) for x in np.percentile(change[again].mean(1), [2.5, 97.5])],
        "nearer": int((change < 0).sum()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--questions", type=int, default=24, help="of each task (default: 24)")
    asked = parser.parse_args()
    results = {name: measure(name, asked.questions) for name in embedded_names()}
    OUT.write_text(json.dumps({"keep": KEEP, "models": results}, indent=1) + "\n", encoding="utf-8")
    print(OUT.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
