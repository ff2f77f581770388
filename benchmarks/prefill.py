"""A pruned prefill beside a bare text model that runs on the same number of tokens.

    python benchmarks/prefill.py                                    # the methods of the targets, on one thread of a CPU
    python benchmarks/prefill.py --methods all
    python benchmarks/prefill.py --device cuda --model llava-1.5-7b

The pruned prefill is the whole forward of the multimodal model, scoring and selecting included, without its vision
tower and its projector, which the unpruned model needs as well. The bare one is the text model alone on random
embeddings, with as many tokens at each decoder layer as the pruned one has there, and the head on the last token. So
`ratio` is what the method, the runtime and the rest of the multimodal forward add; 1 would be a pruning that costs
nothing. `unpruned` is the unpruned forward over the pruned one, both without tower and projector. Weights are random.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from beside import Figures, clock, methods_of, noise, parser, timed, turns
from torch import Tensor, nn

import vlmprune
from vlmprune.bench.random_inputs import random_inputs, usual_visual
from vlmprune.bench.random_models import Architecture, random_model
from vlmprune.core.errors import UserError

SMALL = "llava-1.5-7b:layers=8,encoder_layers=3,shrink=4"  # 1,024 wide
KEEPS = (0.333, 0.222, 0.111, 0.05)
NAMED = ("random", "hiprune", "visionzip", "fastv", "dart", "divprune", "cdpruner", "hilo", "topv", "tome")
FREER, WIDE, NARROW = ("hilo", "topv", "tome"), 1.08, 1.03  # the targets, and who has the wider one


class Subject:
    """A model with random weights and a prompt with one picture."""

    def __init__(self, name: str, device: str, visual: int | None = None, batch: int = 1) -> None:
        self.device = device
        self.model: Any = random_model(Architecture.parse(name), device)
        self.inputs = random_inputs(self.model, visual or usual_visual(self.model), batch)
        self.text: Any = self.model.get_decoder()
        width = self.text.config.hidden_size
        prompt = self.inputs["input_ids"].shape
        draw = torch.Generator().manual_seed(0)
        self.embeds = torch.randn(*prompt, width, generator=draw).to(device, self.model.dtype)
        inner: Any = self.model.model
        named = ("vision_tower", "visual", "multi_modal_projector")
        self._encoding = [getattr(inner, name) for name in named if hasattr(inner, name)]

    @contextlib.contextmanager
    def _encoding_seconds(self) -> Iterator[Callable[[], float]]:
        """What tower and projector take to encode the picture; a method that projects rows later pays for it."""
        spans: dict[nn.Module, list[float]] = {}

        def enter(module: nn.Module, _: Any) -> None:
            if module not in spans:
                spans[module] = [clock(self.device)]

        def leave(module: nn.Module, *_: Any) -> None:
            if len(spans[module]) == 1:
                spans[module].append(clock(self.device))

        handles = [module.register_forward_pre_hook(enter) for module in self._encoding]
        handles += [module.register_forward_hook(leave) for module in self._encoding]
        try:
            yield lambda: sum(end - start for start, end in spans.values())
        finally:
            for handle in handles:
                handle.remove()

    def forward(self) -> float:
        """Seconds of the multimodal forward as the model is hooked now, without tower and projector."""
        with self._encoding_seconds() as encoding:
            seconds = timed(lambda: self.model(**self.inputs, use_cache=True, logits_to_keep=1), self.device)
            return seconds - encoding()

    def pruned(self, recipe: str) -> float:
        with vlmprune.prune(self.model, recipe):
            return self.forward()

    def lengths(self, recipe: str) -> tuple[int, ...]:
        """Tokens that enter each decoder layer."""
        with vlmprune.prune(self.model, recipe) as session:
            self.forward()
        return tuple(session.last.columns_of(layer).shape[1] for layer in range(len(self.text.layers)))

    def bare(self, lengths: Sequence[int]) -> float:
        """Seconds of the text model alone on so many tokens at each layer."""
        with _cut(self.text, lengths):
            return timed(lambda: self._bare(self.embeds[:, : lengths[0]]), self.device)

    def _bare(self, embeds: Tensor) -> None:
        states = self.text(inputs_embeds=embeds, use_cache=True).last_hidden_state
        self.model.lm_head(states[:, -1:])


@contextlib.contextmanager
def _cut(text: Any, lengths: Sequence[int]) -> Iterator[None]:
    """Let each decoder layer have its first tokens alone."""

    def shorten(length: int) -> Callable[..., Any]:
        def hook(module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Any]) -> Any:
            turned = tuple(part[..., :length, :] for part in kwargs["position_embeddings"])
            return (args[0][:, :length], *args[1:]), {**kwargs, "position_embeddings": turned, "position_ids": None}

        return hook

    shorter = [(layer, n) for layer, n in zip(text.layers, lengths, strict=True) if n < lengths[0]]
    handles = [layer.register_forward_pre_hook(shorten(n), with_kwargs=True) for layer, n in shorter]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def check_bare(subject: Subject) -> None:
    """The bare text model must be told of no mask, lest it be slower than it need be."""
    seen: list[Any] = []

    def note(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        seen.append(kwargs.get("attention_mask"))

    handle = subject.text.layers[0].register_forward_pre_hook(note, with_kwargs=True)
    subject.bare([8] * len(subject.text.layers))
    handle.remove()
    if seen != [None]:
        raise SystemExit("The bare text model makes a mask, so its time would be no bound.")


@torch.no_grad()
def measure(subject: Subject, methods: Sequence[str], keeps: Sequence[float], repeats: int, figures: Figures) -> None:
    check_bare(subject)
    columns = subject.inputs["input_ids"].shape[1]
    whole = (columns,) * len(subject.text.layers)
    bare, vanilla = turns([lambda: subject.bare(whole), subject.forward], repeats)
    unpruned = min(vanilla)
    figures.add(
        method="(unpruned)", keep=1.0, tokens=columns, of=columns, bare_ms=min(bare), forward_ms=unpruned,
        ratio=unpruned / min(bare), noise=noise(bare),
    )  # fmt: skip
    for keep in keeps:
        for method in methods:
            try:
                recipe = str(vlmprune.recipe(method, keep))
                lengths = subject.lengths(recipe)
            except UserError as error:
                print(f"{method}: {error}", flush=True)
                continue
            bare, pruned = turns([partial(subject.bare, lengths), partial(subject.pruned, recipe)], repeats)
            figures.add(
                method=method, keep=keep, tokens=min(lengths), of=columns, bare_ms=min(bare), forward_ms=min(pruned),
                ratio=min(pruned) / min(bare), target=WIDE if method in FREER else NARROW, noise=noise(bare),
                unpruned=unpruned / min(pruned),
            )  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    made = parser(__doc__, "prefill.json", repeats=4)
    made.add_argument("--model", default=SMALL, help=f"an architecture of `vlmprune bench --random` (default: {SMALL})")
    made.add_argument(
        "--methods", default=",".join(NAMED), help="comma-separated, or all (default: those with a target)"
    )
    made.add_argument("--keep", default=",".join(map(str, KEEPS)), help="(default: %(default)s)")
    made.add_argument("--visual-tokens", type=int, help="of the picture (default: that of a usual picture)")
    asked = made.parse_args(arguments)
    figures = Figures(asked)
    methods = methods_of(asked.methods)
    keeps = [float(keep) for keep in asked.keep.split(",")]
    measure(Subject(asked.model, asked.device, asked.visual_tokens), methods, keeps, asked.repeats, figures)


if __name__ == "__main__":
    main()
