"""What a pruned prefill costs beside the unpruned one as visual tokens and batches grow.

    python benchmarks/scaling.py
    python benchmarks/scaling.py --device cuda --model qwen3-vl-8b --visual-tokens 256,1024,6400,16384 --batch 1,8,64

`ratio` is the pruned forward over the unpruned one, scoring and selecting included, both without the vision tower and
the projector; below 1, pruning pays for itself in the language model alone. `limit` is what that ratio would be if
scoring, selecting and the runtime cost nothing: the bare text model (`prefill.py`) over the unpruned forward. Weights
are random. Sizes that do not fit into a GPU's memory are said and left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from beside import Figures, noise, parser, turns
from prefill import Subject

import vlmprune

SMALL = "qwen3-vl-8b:layers=6,encoder_layers=1,shrink=8"  # 512 wide
METHODS = "random,divprune,cdpruner,hilo,fastv,topv,tome"


@torch.no_grad()
def measure(subject: Subject, recipes: dict[str, str], repeats: int) -> list[dict[str, Any]]:
    """One row for each method, all in the same turns."""
    ways = [subject.forward]
    for recipe in recipes.values():
        ways += [partial(subject.bare, subject.lengths(recipe)), partial(subject.pruned, recipe)]
    unpruned, *others = turns(ways, repeats)
    least = min(unpruned)
    return [
        {"method": method, "unpruned_ms": least, "bare_ms": min(bare), "pruned_ms": min(pruned),
         "ratio": min(pruned) / least, "limit": min(bare) / least, "noise": noise(unpruned)}
        for method, bare, pruned in zip(recipes, others[::2], others[1::2], strict=True)
    ]  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    made = parser(__doc__, "scaling.json", repeats=2)
    made.add_argument("--model", default=SMALL, help=f"an architecture of `vlmprune bench --random` (default: {SMALL})")
    made.add_argument("--methods", default=METHODS, help="comma-separated (default: %(default)s)")
    made.add_argument("--keep", type=float, default=0.222, help="(default: %(default)s)")
    made.add_argument("--visual-tokens", default="256,1024,2304", help="sizes, at batch 1 (default: %(default)s)")
    made.add_argument("--batch", default="8", help="batches, at the first size (default: %(default)s)")
    asked = made.parse_args(arguments)
    figures = Figures(asked)
    recipes = {method: str(vlmprune.recipe(method, asked.keep)) for method in asked.methods.split(",")}
    sizes = [int(size) for size in asked.visual_tokens.split(",")]
    for visual, batch in [
        *((size, 1) for size in sizes),
        *((sizes[0], int(batch)) for batch in asked.batch.split(",")),
    ]:
        try:
            rows = measure(Subject(asked.model, asked.device, visual, batch), recipes, asked.repeats)
        except torch.cuda.OutOfMemoryError:
            print(f"{visual} visual tokens, batch {batch}: no room on the GPU", flush=True)
            torch.cuda.empty_cache()
            continue
        for row in rows:
            figures.add(visual=visual, batch=batch, keep=asked.keep, **row)


if __name__ == "__main__":
    main()
