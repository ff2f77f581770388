"""Which part of a pruning method does the work: one part changed at a time, on the embedded models.

    python benchmarks/anatomy.py

writes benchmarks/results/anatomy.json, from which docs/anatomy.md takes its table. Each row holds a recipe against
another that differs in one part: what is scored, whether a second score is added, what becomes of the other tokens,
where the cut is, which position ids are left. Both keep the same number of tokens, but for one where a method rounds
otherwise; in "where" they have the same mean over the decoder's layers instead. `--model` takes models of yours.

The runs are kept in a folder, so that a second call asks only what is missing.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from held import Held, accuracies, variant

from vlmprune.assets import embedded_names

KEEPS = (0.222, 0.111)
PARTS = {
    "one score, against chance": (
        ("uniform", "random"),
        ("fastervlm", "random"),
        ("trim", "random"),
        ("divprune", "random"),
        ("scope(alpha=0)", "random"),
        ("otprune", "random"),
        ("apet(inside=False)", "random"),
    ),
    "a second score": (
        ("scope", "scope(alpha=0)"),
        ("scope", "fastervlm"),
        ("vispruner", "fastervlm"),
        ("hiprune", "fastervlm"),
        ("holov", "fastervlm"),
        ("gridprune", "fastervlm"),
        ("hiprune++", "hiprune"),
        ("cdpruner", "divprune"),
        ("mmtok", "mmtok(alpha=0)"),
        ("mmtok", "mmtok(alpha=1000)"),
        ("prunesid", "divprune"),
    ),
    "the others merged, not dropped": (
        ("prumerge", "fastervlm"),
        ("visionzip", "fastervlm"),
        ("pool", "uniform"),
        ("tome", "divprune"),
        ("tome(inside=True)", "tome"),
    ),
    "a score inside the language model, against chance there": (
        ("fastv@2", "random@2"),
        ("dart@2", "random@2"),
        ("priortr@2", "random@2"),
        ("v2drop@2", "random@2"),
        ("vlmpruner@2", "random@2"),
        ("topv@2", "random@2"),
        ("fuse(divprune:{keep}, lambda_=0)@2", "random@2"),
        ("fuse(divprune:{keep}, lambda_=0)@2", "fastv@2"),
    ),
}
# MMTok's alpha weighs the image's coverage: 0 is the question's words alone, 1000 nearly the image alone.
# One cut before layer 2 of 8 leaves the mean of 1/3 where it leaves 1/9; a cut before the first leaves 1/3 at once.
WHERE = (
    ("random@2:0.111", "random:0.333"),
    ("fastv@2:0.111", "fastervlm:0.333"),
    ("fuse(divprune:0.111, lambda_=0)@2", "divprune:0.333"),
)
POSITIONS = ("random", "divprune", "fastervlm")
OUT = Path(__file__).parent / "results" / "anatomy.json"


def rows() -> list[Held]:
    """Every comparison; those at two budgets with the larger one first."""
    found = [
        Held(what, variant(one, keep).text, variant(other, keep).text)
        for what, pairs in PARTS.items()
        for one, other in pairs
        for keep in KEEPS
    ]
    found += [Held("where, at an equal mean of tokens", variant(one).text, variant(other).text) for one, other in WHERE]
    for method in POSITIONS:
        text = variant(method, KEEPS[-1]).text
        found.append(Held("compact position ids, against original", text, text, "compact", "original"))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", help="embedded name, folder or hub id; may be repeated")
    parser.add_argument("--questions", type=int, default=96, help="of each task (default: 96)")
    parser.add_argument("--runs", type=Path, default=Path("results-anatomy"), help="folder of the runs")
    parser.add_argument("--out", type=Path, default=OUT, help="file of the figures")
    asked = parser.parse_args()
    models = tuple(asked.model or embedded_names())
    results = {"questions": asked.questions, "accuracy": accuracies(asked.runs, asked.questions, rows(), models)}
    asked.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(f"\n{asked.out} written")


if __name__ == "__main__":
    main()
