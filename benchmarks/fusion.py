"""What Hi-Lo Prune's parts do on the embedded models: its fusion by strength, threshold and layer, and its two choices.

    python benchmarks/fusion.py

writes benchmarks/results/fusion.json. Each row is a recipe and the one it is held against: the same without fusion, or
for one of the two choices alone, both together. Of each:

- accuracy: the mean over the generated tasks of both, and their paired change with its 95 % interval, which stays open
  where all answers are equal (Gaffke's, as for the differences in the tables of `vlmprune bench`);
- distance: the mean L2 distance of the logits after the prompt to the unpruned model's, its change in percent with a
  95 % bootstrap interval over questions, and for how many questions the recipe came nearer.

The supplement's table 9 is the rows of strength at 20 %. The runs are kept in a folder, so that a second call asks only
what is missing.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from held import Held, accuracies, named, rounded, variant
from torch import Tensor

import vlmprune
from vlmprune.assets import embedded_names
from vlmprune.bench.protocol import Asker, protocol_for
from vlmprune.bench.questions import Questions
from vlmprune.tasks import get_task, tabled_tasks
from vlmprune.tasks.canvas import canvas_for
from vlmprune.tasks.task import Place

KEEPS = (0.2, 0.1)
STRENGTHS = (0.1, 0.3, 0.5, 1.0)  # of table 9
FUSED = {
    "strength": [f"hilo(lambda_={strength}):{{keep}}" for strength in STRENGTHS],
    "strength, around divprune": [f"fuse(divprune:{{keep}}, lambda_={strength})@2" for strength in STRENGTHS],
    "threshold": [f"hilo({option}):{{keep}}" for option in ("tau=0.1", "tau=0.2", "threshold_over=candidates")],
    "logits": [f"hilo({option}):{{keep}}" for option in ("top_share=1.0", "positive_only=True")],
    "layers": ["hilo@3:{keep}", "hilo@4:{keep}"],
}
WHOLE = "hilo(lambda_=0):{keep}"
PARTS = {
    "pixels alone": "hilo(alpha=1, lambda_=0):{keep}",
    "features alone": "hilo(share=1, lambda_=0):{keep}",
}
OUT = Path(__file__).parent / "results" / "fusion.json"


def rows() -> list[Held]:
    """Every comparison at every budget, the larger one first."""
    found = []
    for keep in KEEPS:
        fused = [(what, variant(text, keep)) for what, texts in FUSED.items() for text in texts]
        for what, fusing in fused:
            plain = fusing.unfused
            if plain is None:
                raise SystemExit(f"{fusing.text} does not fuse.")
            found.append(Held(what, fusing.text, plain.text))
        whole = variant(WHOLE, keep).text
        parts = ((what, variant(text, keep).text) for what, text in PARTS.items())
        found += [Held(what, part, whole) for what, part in parts]
    return found


# ---------------------------------------------------------------- distance of the last logits


def prompts(model: Any, processor: Any, each: int) -> Iterator[Any]:
    """Of `each` questions of every task that this model can be asked and knows."""
    for task in map(get_task, tabled_tasks()):
        asker = Asker(protocol_for(processor), task, processor, model.config.model_type)
        for sample in Questions(task, Place(canvas_for(model.config)), each):
            if not asker.refuses(sample):
                yield asker.inputs([sample])


def last_logits(model: Any, inputs: Any, recipe: str | None) -> Tensor:
    if recipe is None:
        return model(**inputs).logits[0, -1]
    with vlmprune.prune(model, recipe):
        return model(**inputs).logits[0, -1]


@torch.no_grad()
def distances(name: str, each: int, held: Sequence[Held]) -> list[dict[str, Any]]:
    model, processor = vlmprune.load_embedded(name)
    found: dict[str, list[float]] = {recipe: [] for recipe, _ in named(held)}
    for inputs in prompts(model, processor, each):
        whole = last_logits(model, inputs, None)
        for recipe, lengths in found.items():
            lengths.append(float((last_logits(model, inputs, recipe) - whole).norm()))
    return [one._asdict() | summary(np.array([found[one.recipe], found[one.against]]).T) for one in held]


def summary(pairs: np.ndarray) -> dict[str, Any]:
    """Of distances [questions, 2], of a recipe and of what it is held against."""
    change = 100 * (pairs[:, 0] - pairs[:, 1]) / pairs[:, 1].mean()
    again = np.random.default_rng(0).integers(len(change), size=(2000, len(change)))
    return {
        "questions": len(pairs),
        "mean": round(float(pairs[:, 0].mean()), 3),
        "against_mean": round(float(pairs[:, 1].mean()), 3),
        "change": rounded([change.mean(), *np.percentile(change[again].mean(1), [2.5, 97.5])]),
        "nearer": int((change < 0).sum()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", help="an embedded model; may be repeated (default: all)")
    parser.add_argument("--questions", type=int, default=96, help="of each task, for accuracy (default: 96)")
    parser.add_argument("--distances", type=int, default=24, help="of each task, for the distance (default: 24)")
    parser.add_argument("--runs", type=Path, default=Path("results-fusion"), help="folder of the runs")
    parser.add_argument("--out", type=Path, default=OUT, help="file of the figures")
    asked = parser.parse_args()
    held, models = rows(), tuple(asked.model or embedded_names())
    results = {
        "questions": asked.questions,
        "accuracy": accuracies(asked.runs, asked.questions, held, models),
        "distance": {name: distances(name, asked.distances, held) for name in models},
    }
    asked.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(f"\n{asked.out} written")


if __name__ == "__main__":
    main()
