"""What pruning saves in memory: the peak of a generation, and the keys and values it leaves.

    python benchmarks/memory.py
    python benchmarks/memory.py --device cuda --model qwen3-vl-8b --visual-tokens 4096

`peak` is the highest sum of live allocations beyond weights and inputs, from the vision tower to the last new token;
of a GPU as its allocator reports it. Bytes are exact, so each run is done once, and the ratio to the unpruned model's
has no noise. Weights are random.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from beside import Figures, methods_of, parser

import vlmprune
from vlmprune.bench.random_inputs import random_inputs, usual_visual
from vlmprune.bench.random_models import Architecture, random_model
from vlmprune.bench.timing import generate, peak_bytes
from vlmprune.core.errors import UserError

SMALL = "llava-1.5-7b:layers=8,encoder_layers=3,shrink=4"
METHODS = "divprune,cdpruner,hiprune,visionzip,fastv,dart,mustdrop,pyramiddrop,topv,hilo"
NEW_TOKENS = 4


def used(model: Any, inputs: Any, recipe: vlmprune.Recipe | None) -> tuple[int, int]:
    """Bytes at the peak, and of keys and values at the end."""
    found: list[int] = []

    def run() -> None:
        found.append(generate(model, inputs, recipe, NEW_TOKENS)[1].kv_bytes)

    run()  # buffers that are made once
    return peak_bytes(model.device, run), found[-1]


def main(arguments: Sequence[str] | None = None) -> None:
    made = parser(__doc__, "memory.json", repeats=None)
    made.add_argument("--model", default=SMALL, help=f"an architecture of `vlmprune bench --random` (default: {SMALL})")
    made.add_argument("--methods", default=METHODS, help="comma-separated, or all (default: %(default)s)")
    made.add_argument("--keep", default="0.333,0.111", help="(default: %(default)s)")
    made.add_argument("--visual-tokens", type=int, help="of the picture (default: that of a usual picture)")
    asked = made.parse_args(arguments)
    figures = Figures(asked)
    model = random_model(Architecture.parse(asked.model), asked.device)
    inputs = random_inputs(model, asked.visual_tokens or usual_visual(model), batch=1)
    peak, kv = used(model, inputs, None)
    figures.add(method="(unpruned)", keep=1.0, peak_mb=peak / 2**20, kv_mb=kv / 2**20, peak=1.0, kv=1.0)
    methods = methods_of(asked.methods)
    for keep in map(float, asked.keep.split(",")):
        for method in methods:
            try:
                own_peak, own_kv = used(model, inputs, vlmprune.recipe(method, keep))
            except UserError as error:
                print(f"{method}: {error}", flush=True)
                continue
            figures.add(
                method=method, keep=keep, peak_mb=own_peak / 2**20, kv_mb=own_kv / 2**20, peak=own_peak / peak,
                kv=own_kv / kv,
            )  # fmt: skip


if __name__ == "__main__":
    main()
