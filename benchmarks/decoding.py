"""Steps of decoding inside a block, beside the same steps of the plain model on the same keys and values.

    python benchmarks/decoding.py                                    # every method, the embedded LLaVA, one CPU thread
    python benchmarks/decoding.py --random llava-1.5-7b --methods fastv,divprune --device cuda

After a pruned prefill, its keys and values are copied to a plain cache, on which the model goes on outside any block.
Both make the same steps in turns, so `ratio` is what the hooks cost. `unpruned` is a step of the unpruned model, on the
whole prompt, over a step inside the block.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from beside import Figures, methods_of, noise, parser, timed, turns
from torch import Tensor
from transformers import DynamicCache

import vlmprune
from vlmprune.bench.protocol import Asker, protocol_for
from vlmprune.bench.questions import Questions
from vlmprune.bench.random_inputs import random_inputs, usual_visual
from vlmprune.bench.random_models import Architecture, random_model
from vlmprune.core.errors import UserError
from vlmprune.runtime.expected import CACHE, interface_of
from vlmprune.tasks import generated_tasks
from vlmprune.tasks.canvas import canvas_for
from vlmprune.tasks.task import Place

TARGET = 1.02
FIRST = 5  # any token: what is decoded does not matter for its time


class Decoding:
    """A model and a prompt."""

    def __init__(self, model: Any, inputs: dict[str, Tensor], steps: int, device: str) -> None:
        self.model, self.inputs, self.steps, self.device = model, inputs, steps, device
        self.columns = inputs["input_ids"].shape[1]
        self.cache = interface_of(model).cache or CACHE[0]

    def prefill(self) -> Any:
        return self.model(**self.inputs, use_cache=True, logits_to_keep=1)[self.cache]

    def seconds(self, cache: Any) -> float:
        """Of a step, on average: as `generate` makes them for a prompt without padding."""
        token = torch.full((1, 1), FIRST, device=self.device)

        def step(at: int) -> None:
            self.model(input_ids=token, **{self.cache: cache}, position_ids=torch.tensor([[at]], device=self.device))

        def steps() -> None:
            for number in range(self.steps):
                step(self.columns + 1 + number)

        step(self.columns)
        return timed(steps, self.device) / self.steps

    def inside(self, recipe: str) -> float:
        with vlmprune.prune(self.model, recipe):
            return self.seconds(self.prefill())

    def outside(self, stored: Sequence[tuple[Tensor, Tensor]]) -> float:
        """On a plain cache that holds these keys and values."""
        cache = DynamicCache(config=self.model.config.get_text_config())
        for layer, (keys, values) in enumerate(stored):
            cache.update(keys.clone(), values.clone(), layer)
        return self.seconds(cache)

    def stored(self, recipe: str | None) -> list[tuple[Tensor, Tensor]]:
        """Keys and values after a prefill, by layer."""
        with contextlib.nullcontext() if recipe is None else vlmprune.prune(self.model, recipe):
            return [(layer.keys.clone(), layer.values.clone()) for layer in self.prefill().layers]


def embedded(name: str, device: str) -> tuple[Any, dict[str, Tensor]]:
    """An embedded model, and the first question of its benchmark."""
    model: Any
    model, processor = vlmprune.load_embedded(name)
    task = next(iter(generated_tasks().values()))
    asker = Asker(protocol_for(processor), task, processor, model.config.model_type)
    sample = next(iter(Questions(task, Place(canvas_for(model.config)), 1)))
    return model.to(device), dict(asker.inputs([sample]).to(device))


def random(name: str, device: str) -> tuple[Any, dict[str, Tensor]]:
    model = random_model(Architecture.parse(name), device)
    return model, random_inputs(model, usual_visual(model), batch=1)


@torch.no_grad()
def measure(decoding: Decoding, methods: Sequence[str], keep: float, repeats: int, figures: Figures) -> None:
    whole = decoding.stored(None)
    for method in methods:
        try:
            recipe = str(vlmprune.recipe(method, keep))
            kept = decoding.stored(recipe)
        except UserError as error:
            print(f"{method}: {error}", flush=True)
            continue
        ways = [partial(decoding.outside, kept), partial(decoding.inside, recipe), partial(decoding.outside, whole)]
        plain, inside, unpruned = turns(ways, repeats)
        figures.add(
            method=method, stored=[layer[0].shape[2] for layer in kept], plain_ms=min(plain), inside_ms=min(inside),
            ratio=min(inside) / min(plain), target=TARGET, noise=noise(plain), unpruned=min(unpruned) / min(inside),
        )  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    made = parser(__doc__, "decoding.json", repeats=6)
    made.add_argument("--model", default="llava", help="an embedded model (default: llava)")
    made.add_argument("--random", help="instead, an architecture of `vlmprune bench --random`")
    made.add_argument("--methods", default="all", help="comma-separated (default: all)")
    made.add_argument("--keep", type=float, default=0.222, help="(default: %(default)s)")
    made.add_argument("--steps", type=int, default=24, help="steps a turn (default: %(default)s)")
    asked = made.parse_args(arguments)
    figures = Figures(asked)
    given = random(asked.random, asked.device) if asked.random else embedded(asked.model, asked.device)
    methods = methods_of(asked.methods)
    measure(Decoding(*given, asked.steps, asked.device), methods, asked.keep, asked.repeats, figures)


if __name__ == "__main__":
    main()
